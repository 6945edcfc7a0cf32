"""``streaming: true`` with a mixture, through LLaMA-Factory's own entry."""

from __future__ import annotations

import json

import numpy as np
import pytest
from dataflex.rows.streams import ENDLESS
from dataflex.run.record import read_updates
from safetensors.numpy import load_file

NAMES = ("code", "docstrings", "prose")
STREAMED = [
    "streaming=true",
    "max_samples=null",
    "buffer_size=16",
    "max_steps=null",
    "warmup_step=2",
    "update_step=2",
    "update_times=2",
]


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize("workers", [0, 1])
def test_streams_are_mixed_by_proportion_and_resumed_bit_for_bit(train, tmp_path, workers, capsys):
    keys = [*STREAMED, f"dataloader_num_workers={workers}", "save_steps=3", "val_size=6"]
    assert train("mix_random", *keys) == 0
    assert train("mix_random", *keys, f"resume_from_checkpoint={tmp_path}/run/checkpoint-3", out="resumed") == 0
    assert "could not be restored" not in capsys.readouterr().err
    whole, resumed = tmp_path / "run", tmp_path / "resumed"
    assert losses(resumed)[-3:] == losses(whole)[-3:]
    weights, again = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert weights.keys() == again.keys()
    assert all(np.array_equal(weights[name], again[name]) for name in weights)
    rows = np.load(whole / "dataflex_selections" / "step_00000000.npz")["indices"]
    assert np.bincount(rows // ENDLESS).tolist() == [4, 2, 2]  # of 2 steps x 4 rows at 0.5, 0.3 and 0.2
    lines = read_updates(whole)
    assert [sum(line["rows_seen"].values()) for line in lines] == [16, 24]
    assert [line["rows_seen"] for line in read_updates(resumed)] == [lines[-1]["rows_seen"]]


def test_shares_of_tokens_and_losses_of_sources_work_with_streams(train, tmp_path):
    keys = [*STREAMED, "component_name=odm", "mixture_unit=tokens", "stage=sft", "template=default"]
    sources = ["dataset=instructions,instructions_eval", "mixture_sample_rule=uniform", "init_mixture_proportions=null"]
    assert train("mix_random", *keys, *sources) == 0
    assert [line["step"] for line in read_updates(tmp_path / "run")] == [2, 4]
    assert len(losses(tmp_path / "run")) == 6
