"""docs/plain-transformers.md: its blocks run, one after the other, and its tables say what is so."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import transformers
import trl
from dataflex.testing import TokenRows, device, pad_collate, tiny_model
from sft_rows import chat_tokenizer, rows

PAGE = Path(__file__).parents[2] / "docs" / "plain-transformers.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
SECTIONS = [
    "transformers.Trainer",
    "TRL: SFTTrainer",
    "TRL: DPOTrainer, RewardTrainer, KTOTrainer",
    "TRL: GRPOTrainer, RLOOTrainer",
    "Mixtures",
    "Weighters",
    "Resume",
    "Two processes",
    "Notebooks",
    "Results on disk",
    "Errors",
    "Subclassing with trainer_class",
]
SMALL = {"use_cpu": device().type == "cpu", "report_to": "none", "save_strategy": "no", "disable_tqdm": True}


def on_this_machine(made, **more):
    """Arguments for a small machine, under those that the page gives."""

    @functools.wraps(made, updated=())
    def arguments(**given):
        return made(**(SMALL | more | given))

    return arguments


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
def test_every_block_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    configured = on_this_machine(trl.SFTConfig, bf16=False, gradient_checkpointing=False)  # derived from the next one
    monkeypatch.setattr(transformers, "TrainingArguments", on_this_machine(transformers.TrainingArguments))
    monkeypatch.setattr(trl, "SFTConfig", configured)
    tokenizer = chat_tokenizer()
    names = {
        "model": tiny_model(len(tokenizer)),
        "rows": TokenRows(64, lengths=range(8, 13)),
        "target": TokenRows(4, seed=1),
        "collator": pad_collate,
        "tokenizer": tokenizer,
        "chats": rows("messages", 16),
        "prose": rows("text", 24),
        "__name__": "the_page",
    }
    steps = []
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), names)
        steps.append(names["trainer"].state.global_step)
    assert steps == [8, 8, 6, 6, 6, 4, 4, 4, 4, 3]
    said = capsys.readouterr().out
    for line in re.findall(r"^      - (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        first, _, last = line.partition("...")
        assert first in said
        assert last in said
    assert (tmp_path / "runs" / "resumed" / "checkpoint-3").is_dir()


def test_the_page_has_its_sections_and_is_linked():
    found = re.findall(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found == SECTIONS
    for page in ("docs/index.md", "packages/dataflex-core/README.md", "docs/architecture.md"):
        assert "plain-transformers.md" in (PAGE.parents[1] / page).read_text(encoding="utf-8"), page
