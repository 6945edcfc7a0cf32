"""The stages rm, dpo and kto through LLaMA-Factory: every cell of the table in docs/stages.md."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataflex.cli.main import run

pytestmark = [
    pytest.mark.llamafactory,
    # LLaMA-Factory sets it on a trainer of TRL 0.24
    pytest.mark.filterwarnings("ignore:The `padding_value` property is deprecated"),
]

STAGES = ("rm", "dpo", "kto")
WORDS = ("sort", "add", "two", "words", "numbers", "list", "first", "last", "seven", "blue", "green", "river")
ROWS = {"a": 24, "b": 16, "eval": 6}


def said(rng: random.Random, least: int, most: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, most)))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two sources and an evaluation set, each as pairs and as tagged answers."""
    folder, info = tmp_path_factory.mktemp("stages") / "data", {}
    folder.mkdir()
    for number, (name, count) in enumerate(ROWS.items()):
        rng = random.Random(number)
        prompts = [said(rng, 2, 8) for _ in range(count)]
        pairs = [{"instruction": p, "chosen": said(rng, 1, 9), "rejected": said(rng, 1, 9)} for p in prompts]
        tagged = [{"instruction": p, "output": said(rng, 1, 9), "tag": n % 3 != 0} for n, p in enumerate(prompts)]
        for kind, rows in (("pairs", pairs), ("tagged", tagged)):
            (folder / f"{kind}_{name}.json").write_text(json.dumps(rows), encoding="utf-8")
        info[f"pairs_{name}"] = {
            "file_name": f"pairs_{name}.json",
            "ranking": True,
            "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"},
        }
        info[f"tagged_{name}"] = {
            "file_name": f"tagged_{name}.json",
            "columns": {"prompt": "instruction", "response": "output", "kto_tag": "tag"},
        }
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return folder


@pytest.fixture
def stage_run(workspace, data, tmp_path, monkeypatch):
    """``stage_run(stage, keys, out=...)`` trains with these keys over those of a short run; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def go(stage: str, keys: dict[str, Any], out: str = "run", command: str = "train") -> int:
        kind = "tagged" if stage == "kto" else "pairs"
        config = {
            "stage": stage,
            "model_name_or_path": str(workspace / "model"),
            "do_train": True,
            "finetuning_type": "lora",
            "lora_rank": 4,
            "dataset_dir": str(data),
            "dataset": f"{kind}_a",
            "template": "default",
            "cutoff_len": 64,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "output_dir": str(tmp_path / out),
            "overwrite_cache": True,
            "logging_steps": 1,
            "save_steps": 100,
            "save_only_model": False,
            "report_to": "none",
            "disable_tqdm": True,
            "seed": 3,
        }
        config |= {k: f"{kind}_{v}" if k == "eval_dataset" else v for k, v in keys.items()}
        if keys.get("dataset") == "both":
            config["dataset"] = f"{kind}_a,{kind}_b"
        file = tmp_path / f"{out}.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        return run([command, str(file)])

    return go


SELECT = {"train_type": "dynamic_select", "warmup_step": 1, "update_step": 1, "update_times": 2}
MIX = {
    "train_type": "dynamic_mix",
    "dataset": "both",
    "init_mixture_proportions": [0.5, 0.5],
    "warmup_step": 1,
    "update_step": 1,
    "update_times": 2,
}
ORDER = {"train_type": "dynamic_reorder", "train_step": 3}
UPDATES = {"train_step": None, "warmup_step": 1, "update_step": 1, "update_times": 2}
WEIGHT = {"train_type": "dynamic_weight", "train_step": 3, "warmup_step": 1}
TARGET = {"eval_dataset": "eval"}

WORKS: dict[str, dict[str, Any]] = {
    "static": {"train_type": "static", "max_steps": 2},
    "select random": {**SELECT, "component_name": "random"},
    "select loss": {**SELECT, "component_name": "loss"},
    "select loss seen": {**SELECT, "component_name": "loss", "component": {"scores": "seen"}},
    "select delta_loss": {**SELECT, "component_name": "delta_loss"},
    "select near": {**SELECT, **TARGET, "component_name": "near"},
    "select tsds": {**SELECT, **TARGET, "component_name": "tsds"},
    "mix random": {**MIX, "component_name": "random"},
    "mix static": {**MIX, "component_name": "static"},
    "mix temperature": {**MIX, "component_name": "temperature"},
    "mix odm": {**MIX, "component_name": "odm"},
    "mix ado": {**MIX, "component_name": "ado"},
    "order length": {**ORDER, "component_name": "length"},
    "order sorting by length": {**ORDER, "component_name": "sorting", "order": {"by": "length"}},
    "order sorting by loss": {**ORDER, **UPDATES, "component_name": "sorting", "order": {"by": "loss"}},
    "order shuffle": {**ORDER, "component_name": "shuffle"},
    "weight loss": {**WEIGHT, "component_name": "loss"},
    "weight trim": {**WEIGHT, "component_name": "trim"},
    "weight focal": {**WEIGHT, "component_name": "focal"},
    "weight custom": {**WEIGHT, "component_name": "custom"},
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", WORKS)
def test_a_cell_that_works_trains_to_its_end(stage_run, tmp_path, stage, name):
    assert stage_run(stage, WORKS[name]) == 0
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    losses = [line["loss"] for line in state["log_history"] if "loss" in line]
    assert len(losses) == (2 if name == "static" else 3)
    assert np.isfinite(losses).all()
    if stage != "rm":
        assert any("rewards/chosen" in line for line in state["log_history"]), "the stage's own metrics are gone"
