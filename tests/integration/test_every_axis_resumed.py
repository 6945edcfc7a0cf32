"""A composed run that is stopped inside of a segment and resumed is, bit for bit, the run that was never stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import axes_run
import numpy as np
import pytest
import torch
import yaml
from axes_run import COMBINATIONS, OURS, STEPS, WARMUP
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, Part, RunSpec
from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER
from dataflex.run.record import read_trace
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.trainer import DynamicTrainer, trainer_class
from safetensors.torch import load_file
from transformers import Trainer

INSIDE = 6  # segments begin at 2, 5 and 8


def part(kind, name, params=None, **more):
    return Part(ComponentSpec(kind, name, name, params or {}), **more)


FILTER = part(SELECTOR, "loss", keep=0.5, every=2)
PARTS = {
    "select": (FILTER, part(SELECTOR, "loss")),
    "mix": (part(MIXER, "odm"),),
    "order": (part(ORDER, "saw", {"window": 3}, by="loss", over="stretch"),),
    "weight": (part(WEIGHTER, "loss", start=4),),
}
VARIED = {
    "order over the run by loss": (part(ORDER, "saw", by="loss", over="run"),),
    "order over the run by length": (part(ORDER, "saw", {"window": 3}, by="length", over="run"),),
    "order over the run in sources of a filter": (FILTER, *PARTS["mix"], part(ORDER, "stair", by="loss", over="run")),
    "pacing": (*PARTS["mix"], part(ORDER, "pacing", {"until_step": 9}, by="length", over="run"), *PARTS["weight"]),
    "filter alone": (FILTER, *PARTS["mix"]),
    "parts that rest": (
        FILTER,
        part(SELECTOR, "loss", every=2),
        part(MIXER, "odm", start=5),
        part(ORDER, "saw", by="selector", over="stretch", every=2),
    ),
    "losses that training saw": (
        part(SELECTOR, "loss", {"scores": "seen"}, keep=0.5, every=2),
        part(SELECTOR, "loss", {"scores": "seen", "max_age": 3}),
        *PARTS["mix"],
        part(ORDER, "saw", by="seen", over="stretch"),
        *PARTS["weight"],
    ),
}
CASES = {"+".join(names): tuple(each for name in names for each in PARTS[name]) for names in COMBINATIONS} | VARIED


def trained(parts, folder, resumed=None):
    """Trains a composition, from the checkpoint where there is one; returns its trainer."""
    keys = {}
    for each in parts:
        keys.setdefault(each.component.kind.name, []).append({"component": each.component.name})
    written = {kind: found[0] if len(found) == 1 else tuple(found) for kind, found in keys.items()}
    steps = {"warmup_step": WARMUP, "update_step": 3, "update_times": 3}
    rows = TokenRows(61, lengths=range(8, 25))
    if "mixer" in keys:
        rows = {"a": TokenRows(30, lengths=range(8, 25)), "b": TokenRows(41, lengths=range(5, 19), seed=1)}
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": -1}
    saving = {"save_strategy": "steps", "save_steps": INSIDE, "logging_steps": 2, "learning_rate": 1e-2}
    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1  # a draw too many or too few shows
    trainer = trainer_class(DynamicTrainer, Trainer)(
        model,
        tiny_training_args(folder, **sizes, **saving),
        train_dataset=rows,
        data_collator=pad_collate,
        dataflex=RunSpec(DataflexArguments(train_type="dynamic", **steps, **written), parts=parts),
    )
    trainer.train(resume_from_checkpoint=resumed)
    return trainer


def left(folder):
    """Returns what must be equal of two records."""
    lines = [{key: value for key, value in line.items() if "seconds" not in key} for line in read_trace(folder)]
    arrays = {
        f"{file.name} {name}": array.tobytes()
        for file in sorted((folder / "dataflex_selections").iterdir())
        for name, array in np.load(file).items()
    }
    return lines, arrays


@pytest.mark.parametrize("parts", CASES.values(), ids=CASES)
def test_stopped_inside_of_a_segment_it_ends_as_if_it_had_never_been(tmp_path, parts):
    whole = trained(parts, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    again = trained(parts, tmp_path / "again", str(tmp_path / "again" / f"checkpoint-{INSIDE}"))
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.model.state_dict().items())
    assert left(tmp_path / "again") == left(tmp_path / "whole")
    losses = [[each["loss"] for each in trainer.state.log_history if "loss" in each] for trainer in (whole, again)]
    assert losses[0] == losses[1]


FATAL = """
import os
import signal
from dataflex.core.registry import register_weighter
from dataflex.train.weighter.base_weighter import Weighter

@register_weighter("fatal")
class Fatal(Weighter):
    draws = False

    def get_weighted_loss(self, losses, *, ctx=None, model=None, inputs=None):
        if str(ctx.state.global_step) == os.environ.get("KILLED_AT"):
            os.kill(os.getpid(), signal.SIGKILL)
        return (losses.detach() * losses).mean()
"""


@pytest.mark.llamafactory
def test_the_command_line_goes_on_with_a_run_of_every_axis_that_was_killed(workspace, train, tmp_path):
    (workspace / "fatal.py").write_text(FATAL)
    axes = OURS | {"weighter": {"component": "fatal", "from": 0}}
    keys = axes_run.configuration(workspace, "sft", axes_run.AXES, axes) | {"save_steps": 2}
    keys |= {"plugins": [str(workspace / "fatal.py")], "max_samples": 60, "per_device_train_batch_size": 4}
    keys |= {
        "cutoff_len": 64,
        "plot_loss": False,
        "logging_steps": 3,
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(keys))
    command = [sys.executable, "-m", "dataflex", "train", str(tmp_path / "run.yaml")]
    killed = subprocess.run(command, env=os.environ | {"KILLED_AT": "7"}, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert (tmp_path / "run" / "checkpoint-6").is_dir()
    command.append("resume_from_checkpoint=true")
    resumed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "checkpoint-6" in resumed.stderr
    assert train(str(tmp_path / "run.yaml"), "save_steps=2", "logging_steps=3", out="whole") == 0
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("run", "whole")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert left(tmp_path / "run") == left(tmp_path / "whole")
    assert len(left(tmp_path / "run")[1]) == 7  # indices of each segment, scores of those with an update
    assert max(line["step"] for line in read_trace(tmp_path / "run")) == STEPS - 1
