"""docs/index.md: its Python trains as it stands, and its YAML is what `dataflex-cli init` writes."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import trl
import yaml
from dataflex.testing import device, tiny_model
from dataflex.workspace.configs import run_config
from sft_rows import chat_tokenizer, rows

TEXT = (Path(__file__).parents[2] / "docs" / "index.md").read_text(encoding="utf-8")
SMALL = {"use_cpu": device().type == "cpu", "bf16": False, "report_to": "none", "save_strategy": "no"}
SMALL |= {"disable_tqdm": True, "gradient_checkpointing": False, "per_device_train_batch_size": 1}


def fenced(language: str) -> str:
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    return block


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
def test_the_python_of_the_page_trains_the_steps_that_its_schedule_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = chat_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    tiny_model(len(tokenizer)).save_pretrained(tmp_path / "model")

    @functools.wraps(trl.SFTConfig, updated=())
    def arguments(made=trl.SFTConfig, **given):
        return made(**(SMALL | given))

    monkeypatch.setattr(trl, "SFTConfig", arguments)
    names = {"model": str(tmp_path / "model"), "rows": rows("messages", 16), "target": rows("messages", 4)}
    exec(compile(fenced("python"), "docs/index.md", "exec"), names)
    assert names["trainer"].state.global_step == 60
    assert (tmp_path / "saves" / "less" / "dataflex_trace.jsonl").read_text(encoding="utf-8").count("\n") == 5


def test_the_yaml_of_the_page_is_in_the_file_that_init_writes():
    shown = yaml.safe_load(fenced("yaml"))
    written = yaml.safe_load(run_config("select_less", Path("try")))
    assert shown == {key: written[key] for key in shown}
