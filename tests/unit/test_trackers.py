"""The numbers and histograms that experiment trackers get: their names, and each tracker in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from dataflex import dynamic
from dataflex.run.tracked_numbers import (
    loss_metrics,
    update_histograms,
    update_metrics,
    weight_histograms,
    weight_metrics,
)
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_training_args
from dataflex.trainer import trackers
from dataflex.trainer.trackers import send_histograms
from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import SwanLabCallback, TensorBoardCallback, WandbCallback

HISTOGRAM = {"edges": [0.0, 1.0, 3.0], "counts": [3, 1]}
SCORES = {"mean": 1.0, "std": 0.5, "min": 0.0, "q1": 0.5, "median": 1.0, "q3": 1.5, "max": 2.0, "histogram": HISTOGRAM}
LINES = [
    {"kind": "filter", "update": 3, "seconds": 0.5, "scores": SCORES},
    {"kind": "filter", "update": 3, "seconds": 0.25, "scores": {"mean": 7.0, "median": None}},
    {
        "kind": "mix", "update": 3, "seconds": 1.0, "proportions": {"code": 0.25, "a/b": 0.75},
        "rows_seen": {"code": 4, "a/b": 12}, "passes": {"code": 0.5, "a/b": 1.5},
    },
    {"kind": "select", "update": 3, "seconds": 2.0, "scores": SCORES},
    {"kind": "order", "update": 3, "seconds": 0.25},
]  # fmt: skip
NAMES = ("mean", "std", "min", "q1", "median", "q3", "max")


def test_the_numbers_of_a_run_of_one_axis_are_named_in_groups():
    assert update_metrics([LINES[3]], alone=True) == {
        "dataflex/update": 3,
        "dataflex/seconds": 2.0,
        **{f"dataflex/score/{name}": SCORES[name] for name in NAMES},
    }
    assert update_metrics([LINES[2]], alone=True) == {
        "dataflex/update": 3, "dataflex/seconds": 1.0, "dataflex/share/code": 0.25, "dataflex/share/a/b": 0.75,
        "dataflex/rows_seen/code": 4, "dataflex/rows_seen/a/b": 12,
    }  # fmt: skip
    assert update_histograms([LINES[3]], alone=True) == {"dataflex/score/histogram": HISTOGRAM}


def test_the_numbers_of_several_axes_have_a_group_for_each_and_none_takes_the_place_of_another():
    found = update_metrics(LINES, alone=False)
    assert found["dataflex/seconds"] == 4.0
    assert {name: value for name, value in found.items() if name.endswith("/seconds")} == {
        "dataflex/seconds": 4.0, "dataflex/filter/seconds": 0.5, "dataflex/filter_2/seconds": 0.25,
        "dataflex/mix/seconds": 1.0, "dataflex/select/seconds": 2.0, "dataflex/order/seconds": 0.25,
    }  # fmt: skip
    assert found["dataflex/filter_2/score/mean"] == 7.0
    assert "dataflex/filter_2/score/median" not in found, "null is no number"
    assert found["dataflex/share/code"] == 0.25
    assert {f"dataflex/{kind}/score/{name}" for kind in ("filter", "select") for name in NAMES} <= found.keys()
    assert all(isinstance(value, int | float) for value in found.values()), "a tracker takes nothing else"
    assert update_histograms(LINES, alone=False) == {
        "dataflex/filter/score/histogram": HISTOGRAM, "dataflex/select/score/histogram": HISTOGRAM
    }  # fmt: skip


def test_the_scores_of_all_rows_that_were_scored_stand_beside_those_of_the_chosen_ones():
    line = LINES[3] | {"candidates": {"mean": -1.0, "q1": None, "histogram": HISTOGRAM}}
    added = set(update_metrics([line], alone=True)) - set(update_metrics([LINES[3]], alone=True))
    assert added == {"dataflex/candidates/mean"}
    assert set(update_histograms([line], alone=False)) == {
        "dataflex/select/score/histogram", "dataflex/select/candidates/histogram"
    }  # fmt: skip


def test_the_losses_of_sources_have_a_group():
    line = {"kind": "loss", "steps": 5, "sources": {"a": {"loss": 2.5, "tokens": 9}, "b": {"loss": None, "tokens": 0}}}
    assert loss_metrics(line) == {"dataflex/loss/a": 2.5}
    assert loss_metrics({}) == {}


def test_the_numbers_of_weights_are_named_in_groups():
    line = {"kind": "weight", "mean": 1.0, "min": 0.5, "max": 2.0, "effective": 7.0, "effective_share": 0.875}
    numbers = {f"dataflex/weight/{name}": line[name] for name in ("mean", "min", "max", "effective_share")}
    assert weight_metrics(line) == numbers
    by_source = {"dataflex/weight/source/a": 0.5, "dataflex/weight/source/b": 2.0}
    assert weight_metrics(line | {"sources": {"a": 0.5, "b": 2.0}}) == numbers | by_source
    assert weight_histograms(line | {"histogram": HISTOGRAM}) == {"dataflex/weight/histogram": HISTOGRAM}
    assert weight_metrics({}) == weight_histograms({}) == weight_histograms(line) == {}


class Writer:
    """Stands for a SummaryWriter."""

    def __init__(self):
        self.calls = []

    def add_histogram_raw(self, *arguments):
        self.calls.append(arguments)


def bare(kind):
    """A callback of transformers without the package it is for."""
    return kind.__new__(kind)


def test_tensorboard_gets_edges_and_counts(monkeypatch):
    callback = bare(TensorBoardCallback)
    callback.tb_writer = Writer()
    send_histograms([TrainerCallback(), callback], {"dataflex/score/histogram": HISTOGRAM}, 5)
    name, low, high, count, total, squares, limits, counts, step = callback.tb_writer.calls[0]
    assert (name, low, high, count, step) == ("train/dataflex/score/histogram", 0.0, 3.0, 4, 5)
    assert (total, squares) == (3 * 0.5 + 2.0, 3 * 0.25 + 4.0)
    assert (limits, counts) == ([1.0, 3.0], [3, 1])
    callback.tb_writer = None  # closed, as training has ended
    send_histograms([callback], {"dataflex/score/histogram": HISTOGRAM}, 5)


def module(monkeypatch, name, **members):
    found = ModuleType(name)
    vars(found).update(members)
    monkeypatch.setitem(sys.modules, name, found)
    return found


def test_weights_and_biases_gets_its_own_histogram(monkeypatch):
    logged = []
    wandb = module(
        monkeypatch, "wandb", run=object(), Histogram=lambda np_histogram: np_histogram, log=logged.append
    )  # fmt: skip
    callback = bare(WandbCallback)
    send_histograms([callback], {"dataflex/weight/histogram": HISTOGRAM}, 7)
    (line,) = logged
    counts, edges = line.pop("train/dataflex/weight/histogram")
    assert (counts.tolist(), edges.tolist()) == (HISTOGRAM["counts"], HISTOGRAM["edges"])
    assert line == {"train/global_step": 7}
    wandb.run = None  # nobody has begun one, or it is over
    send_histograms([callback], {"dataflex/weight/histogram": HISTOGRAM}, 7)
    assert len(logged) == 1


@pytest.mark.parametrize("of", ["transformers", "SwanLab itself, which LLaMA-Factory takes"])
def test_swanlab_gets_a_bar_for_each_bin(monkeypatch, of):
    class Bar:
        def add_xaxis(self, names):
            self.names = names

        def add_yaxis(self, name, counts):
            self.counts = counts

    class Theirs(TrainerCallback):
        pass

    logged = []
    module(
        monkeypatch, "swanlab", echarts=SimpleNamespace(Bar=Bar),
        log=lambda line, step: logged.append((line, step)),
    )  # fmt: skip
    callback = bare(SwanLabCallback)
    if of != "transformers":
        module(monkeypatch, trackers._THEIR_SWANLAB, SwanLabCallback=Theirs)
        callback = Theirs()
    send_histograms([callback], {"dataflex/score/histogram": HISTOGRAM}, 9)
    ((line, step),) = logged
    bar = line["train/dataflex/score/histogram"]
    assert (bar.names, bar.counts, step) == (["0 to 1", "1 to 3"], [3, 1], 9)


def test_numbers_that_are_all_the_same_are_one_bin_with_a_width():
    callback = bare(TensorBoardCallback)
    callback.tb_writer = Writer()
    send_histograms([callback], {"x": {"edges": [2.0] * 21, "counts": [0] * 19 + [5]}}, 1)
    assert callback.tb_writer.calls[0][1:4] == (1.5, 2.5, 5)
    assert callback.tb_writer.calls[0][6:8] == ([2.5], [5])


def test_no_tracker_is_imported_that_the_run_does_not_report_to():
    code = (
        "import sys\nfrom dataflex.trainer.trackers import send_histograms\nfrom transformers import TrainerCallback\n"
        "send_histograms([TrainerCallback()], {'x': {'edges': [0.0, 1.0], 'counts': [1]}}, 1)\n"
        "loaded = {'wandb', 'mlflow', 'swanlab', 'tensorboard'} & sys.modules.keys()\nassert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def report(folder, to, callbacks=None):
    """Trains four steps with a filter, a selector and a weighter; returns the trainer."""
    keys = {"warmup_step": 1, "update_step": 1, "update_times": 2}
    made = dynamic(
        Trainer, selector=[{"component": "loss", "keep": 0.5}, "loss"], weighter="loss", **keys
    )(
        model=tiny_model(), args=tiny_training_args(folder / "out", report_to=to, max_steps=-1),
        train_dataset=TokenRows(24, lengths=8), data_collator=pad_collate, callbacks=callbacks,
    )  # fmt: skip
    made.train()
    return made


def needs(name):
    return pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed: pip install {name}")


def logged(made, name):
    return [(line["step"], line[name]) for line in made.state.log_history if name in line]


NAMED = ["dataflex/select/score/mean", "dataflex/filter/score/max", "dataflex/weight/mean", "dataflex/seconds"]


@needs("tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_what_was_logged(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    made = report(tmp_path, "tensorboard")
    send = bare(TensorBoardCallback)
    events = import_module("tensorboard.backend.event_processing.event_accumulator")
    writer = import_module("torch.utils.tensorboard").SummaryWriter(str(tmp_path / "tb"))
    send.tb_writer = writer
    send_histograms([send], {"dataflex/score/histogram": HISTOGRAM}, 5)
    writer.close()
    found = events.EventAccumulator(str(tmp_path / "tb"), size_guidance={"tensors": 0, "histograms": 0})
    found.Reload()
    for name in NAMED:
        shown = [(each.step, each.value) for each in found.Scalars(f"train/{name}")]
        assert shown == [(step, pytest.approx(value, rel=1e-6)) for step, value in logged(made, name)]
        assert shown
    (histogram,) = found.Histograms("train/dataflex/score/histogram")
    assert histogram.step == 5
    value = histogram.histogram_value
    assert (value.num, list(value.bucket_limit), list(value.bucket)) == (4.0, [1.0, 3.0], [3.0, 1.0])


BEGIN = """
import json, sys
from pathlib import Path
from dataflex.trainer.trackers import send_histograms
from test_trackers import HISTOGRAM, NAMED, logged, report

folder, tracker = Path(sys.argv[1]), sys.argv[2]
made = report(folder, tracker, callbacks=callbacks)
send_histograms(made.callback_handler.callbacks, {"dataflex/score/histogram": HISTOGRAM}, 5)
(folder / "history.json").write_text(json.dumps(made.state.log_history))
"""
WANDB = """
import wandb
summary = dict(wandb.run.summary)
assert summary["train/dataflex/score/histogram"]["values"] == [3, 1]
for name in NAMED:
    assert abs(summary[f"train/{name}"] - logged(made, name)[-1][1]) < 1e-6, name
wandb.finish()
"""
MLFLOW = """
import mlflow
(run,) = mlflow.search_runs(output_format="list")
for name in NAMED:
    shown = mlflow.MlflowClient().get_metric_history(run.info.run_id, name)
    assert [(each.step, each.value) for each in shown] == logged(made, name), name
"""
OWN_SWANLAB = """
from swanlab.integration.transformers import SwanLabCallback
callbacks = [SwanLabCallback(project="dataflex", mode="offline")]
"""
SWANLAB = """
import swanlab
swanlab.finish()
"""


def in_other_process(code, folder, tracker, before="callbacks = None\n", **variables):
    """Runs a script: trackers keep threads, services and runs of their own until a process ends."""
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), **variables}
    command = [sys.executable, "-c", before + BEGIN + code, str(folder), tracker]
    done = subprocess.run(command, env=environ, cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@needs("wandb")
def test_weights_and_biases_shows_what_was_logged(tmp_path):
    in_other_process(WANDB, tmp_path, "wandb", WANDB_MODE="offline", WANDB_DIR=str(tmp_path), WANDB_SILENT="true")
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@needs("mlflow")
def test_mlflow_shows_what_was_logged(tmp_path):
    in_other_process(MLFLOW, tmp_path, "mlflow", MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'mlflow.db'}")


@needs("swanlab")
def test_swanlab_shows_what_was_logged(tmp_path):
    """With SwanLab's own callback, as LLaMA-Factory takes it; its newest releases break that of transformers 5.5."""
    variables = {"SWANLAB_MODE": "offline", "SWANLAB_LOG_DIR": str(tmp_path / "swanlog")}
    in_other_process(SWANLAB, tmp_path, "none", before=OWN_SWANLAB, **variables)
    kept = b"".join(path.read_bytes() for path in (tmp_path / "swanlog").rglob("*") if path.is_file())
    for name in [*NAMED, "dataflex/score/histogram"]:
        assert f"train/{name}".encode() in kept, name


def test_numbers_of_a_run_reach_the_trainers_log(tmp_path):
    made = report(tmp_path, "none")
    named = [*NAMED, "dataflex/weight/effective_share", "dataflex/update"]
    assert all(logged(made, name) for name in named)
    assert not any("_mean" in name or "proportion" in name for line in made.state.log_history for name in line)
    assert np.isfinite([value for name in named for _, value in logged(made, name)]).all()
