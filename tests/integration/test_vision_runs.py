"""Every component over LLaMA-Factory's own run of a model with images: it trains, or is refused before it is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from dataflex.cli.main import run
from dataflex.config.check import check
from dataflex.config.checks.dataset_entry import entry
from dataflex.config.load import read_config
from dataflex.forecast.data_size import data_size
from dataflex.forecast.image_tokens import ImageTokens
from dataflex.testing import write_image_rows
from vision_data import vision_data, vision_keys

pytestmark = [
    pytest.mark.llamafactory,
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),  # of torch's own forward mode
]

SELECT = {"train_type": "dynamic_select", "warmup_step": 1, "update_step": 1, "update_times": 2}
MIX = {"train_type": "dynamic_mix", "warmup_step": 1, "update_step": 1, "update_times": 2, "dataset": "pictures,words"}
WEIGHT = {"train_type": "dynamic_weight", "warmup_step": 1, "train_step": 3}
MODEL = {"embedding": "model"}
RUNS: dict[str, dict[str, Any]] = {
    "coincide": {**SELECT, "component_name": "coincide", "component": {"num_clusters": 3}},
    "random": {**SELECT, "component_name": "random"},
    "loss": {**SELECT, "component_name": "loss"},
    "loss, seen": {**SELECT, "component_name": "loss", "component": {"scores": "seen"}},
    "delta_loss": {**SELECT, "component_name": "delta_loss"},
    "less": {**SELECT, "component_name": "less"},
    "cluster_less": {**SELECT, "component_name": "cluster_less", "component": {"clusters": 3, **MODEL}},
    "zeroth": {**SELECT, "component_name": "zeroth", "component": {"directions": 2}},
    "zeroth by jvp": {**SELECT, "component_name": "zeroth", "component": {"directions": 2, "method": "jvp"}},
    "near": {**SELECT, "component_name": "near", "component": MODEL},
    "near by n-grams": {**SELECT, "component_name": "near"},
    "tsds": {**SELECT, "component_name": "tsds", "component": {"neighbours": 3, **MODEL}},
    "rho_loss": {**SELECT, "component_name": "rho_loss", "component": {"reference_model": "MODEL"}},
    "less, the tower trained": {
        **SELECT, "component_name": "less", "freeze_vision_tower": False, "freeze_multi_modal_projector": False,
    },
    "odm": {**MIX, "component_name": "odm"},
    "ado": {**MIX, "component_name": "ado"},
    "doremi": {**MIX, "component_name": "doremi", "component": {"reference_model": "MODEL"}},
    "weighter loss": {**WEIGHT, "component_name": "loss"},
    "weighter adapt": {**WEIGHT, "component_name": "adapt"},
    "weighter balancer": {**WEIGHT, "component_name": "balancer", "dataset": "pictures,words"},
    "weighter trim": {**WEIGHT, "component_name": "trim"},
    "weighter focal": {**WEIGHT, "component_name": "focal"},
    "packed": {**SELECT, "component_name": "loss", "neat_packing": True, "cutoff_len": 256},
    "packed, by gradients": {**SELECT, "component_name": "less", "neat_packing": True, "cutoff_len": 256},
    "kept tokenised": {
        **SELECT, "component_name": "coincide", "tokenized_path": "TOKENS", "component": {"num_clusters": 2},
    },
    "all axes": {
        "train_type": "dynamic", "dataset": "pictures,words", "warmup_step": 1, "update_step": 1, "update_times": 2,
        "selector": {"component": "coincide", "params": {"num_clusters": 2}}, "mixer": "odm", "weighter": "loss",
        "order": {"component": "sorting", "by": "loss", "over": "stretch"},
    },
}  # fmt: skip
ALWAYS = ("coincide", "less", "all axes")
"""The others take a minute or two together."""
CASES = [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in RUNS]


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("vision")
    found = vision_keys(folder)
    write_image_rows(folder / "data", "words", (0, 0, 1, 0, 0, 0, 0, 0), seed=9)
    return found


def written(folder: Path, keys: dict[str, Any], **changes: Any) -> Path:
    model = keys["model_name_or_path"]
    more = {"per_device_train_batch_size": 2, "output_dir": str(folder / "run"), "save_steps": 100, "logging_steps": 1}
    more |= {"disable_tqdm": True, "plot_loss": False, "learning_rate": 1e-3}
    content = json.loads(json.dumps(keys | more | changes).replace('"MODEL"', json.dumps(model)))
    if content.get("tokenized_path"):
        content["tokenized_path"] = str(folder / "tokens")
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.mark.parametrize("name", CASES)
def test_it_trains_on_rows_with_images(keys, tmp_path, name):
    assert run(["train", str(written(tmp_path, keys, **RUNS[name]))]) == 0
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 3
    assert np.isfinite(losses).all()


@pytest.mark.slow
def test_it_trains_in_a_process_of_its_own(keys, tmp_path):
    file = written(tmp_path, keys, **RUNS["coincide"])
    found = subprocess.run(
        [sys.executable, "-m", "dataflex", "train", str(file)],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]


@pytest.mark.parametrize("command", ["validate", "train"])
def test_nice_is_refused_before_anything_is_loaded(keys, tmp_path, capsys, command):
    assert run([command, str(written(tmp_path, keys, **SELECT, component_name="nice"))]) == 2
    out = capsys.readouterr()
    assert (
        "eval_dataset: the rows of 'target' have images, and for the selector 'nice' answers are generated from the "
        "tokens of a prompt alone -> evaluate on rows of text alone, or take less, which sees images"
    ) in out.err + out.out
    assert not (tmp_path / "run").exists()


def test_the_plan_counts_the_tokens_of_images(keys, tmp_path):
    spec = check(read_config(written(tmp_path, keys, **RUNS["coincide"])), tmp_path)
    found = data_size(spec)
    (rows,) = found.sources
    assert rows.how == "8 rows of pictures.json, counted by the model's tokenizer, with those of their images"
    data = vision_data(Path(keys["dataset_dir"]).parent)
    seen = [sum(token == data.model.config.image_token_id for token in row["input_ids"]) for row in data.dataset]
    images = ImageTokens(keys)
    definition = entry("pictures", json.loads(Path(keys["dataset_dir"], "dataset_info.json").read_text())["pictures"])
    raw = json.loads(Path(keys["dataset_dir"], "pictures.json").read_text())
    said = [images.of(row, definition) for row in raw]
    assert [bool(count) for count in said] == [bool(count) for count in seen]
    assert sum(said) == pytest.approx(sum(seen), rel=0.25)  # sides are rounded to whole patches
