"""What a weighted run leaves: lines about its weights, and the rows that it trained on; also after it was killed."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from dataflex.objective.weight_log import MOST, WeightLog
from dataflex.run.record import read_trace
from dataflex.testing import TokenRows
from dataflex.trainer import trained_rows
from rank_group import on_ranks
from weighted_run import weighted

SOURCES = {"a": TokenRows(10, lengths=8), "b": TokenRows(14, lengths=8, seed=1)}
BY_SOURCE = {"weights": {"a": 0.5, "b": 2.0}}
ARGS = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 2, "max_steps": 5}


def build(folder, name="dataset", params=BY_SOURCE, rows=SOURCES, keys=None, **args):
    return weighted(folder, name, params, rows, keys=keys, **(ARGS | args))


def rows_of(folder):
    files = sorted((Path(folder) / "dataflex_selections").glob("step_*.npz"))
    return {int(file.stem.removeprefix("step_")): np.load(file)["indices"] for file in files}


def weights_of(folder):
    return [line for line in read_trace(folder) if line["kind"] == "weight"]


def losses_of(folder):
    return [line for line in read_trace(folder) if line["kind"] == "loss"]


def test_a_line_tells_mean_extremes_effective_samples_and_sources_of_the_weights_since_the_last(tmp_path):
    done = build(tmp_path)
    done.train()
    lines, rows = weights_of(tmp_path), np.concatenate(list(rows_of(tmp_path).values()))
    assert [(line["step"], line["steps"]) for line in lines] == [(1, 2), (3, 2), (4, 1)]
    assert {(line["kind"], line["component"]) for line in lines} == {("weight", "dataset")}
    start = 0
    for line in lines:
        of_line = rows[start : (start := start + 4 * line["steps"])]
        w = np.where(of_line < 10, 0.5, 2.0)
        assert line["samples"] == len(w)
        assert (line["mean"], line["min"], line["max"]) == pytest.approx((w.mean(), w.min(), w.max()))
        assert line["effective"] == pytest.approx(w.sum() ** 2 / (w**2).sum())
        assert line["effective_share"] == pytest.approx(line["effective"] / len(w))
        assert line["sources"] == {name: of for name, of in (("a", 0.5), ("b", 2.0)) if of in w}
    logged = [line["dataflex/weight/mean"] for line in done.state.log_history if "dataflex/weight/mean" in line]
    assert logged == pytest.approx([line["mean"] for line in lines[:2]])


def test_nothing_is_said_of_weights_before_there_are_any_nor_of_sources_that_are_not_known(tmp_path):
    build(tmp_path, "focal", {}, TokenRows(24), keys={"warmup_step": 3}).train()
    lines = weights_of(tmp_path)
    assert losses_of(tmp_path) == []
    assert [(line["step"], line["steps"]) for line in lines] == [(3, 1), (4, 1)]
    assert all("sources" not in line for line in lines)


def test_the_rows_are_those_of_the_static_run_in_the_order_of_training(tmp_path, monkeypatch):
    monkeypatch.setattr(trained_rows, "STRETCH", 2)
    seen = []
    trainer = build(tmp_path)
    batches = trainer.get_batch_samples

    def noting(*args, **kwargs):
        found = batches(*args, **kwargs)
        seen.append(torch.cat(trainer.batch_rows.of_step).tolist())
        return found

    trainer.get_batch_samples = noting
    trainer.train()
    found = rows_of(tmp_path)
    assert list(found) == [0, 2, 4]
    assert np.concatenate(list(found.values())).tolist() == [row for step in seen for row in step]
    assert len(set(np.concatenate(list(found.values())).tolist())) == 20, "each row once in a pass"


@pytest.mark.parametrize("stretch", [2, 500])
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_killed_run_that_is_resumed_leaves_the_record_of_one_that_was_never_stopped(
    tmp_path, monkeypatch, stretch, stop
):
    monkeypatch.setattr(trained_rows, "STRETCH", stretch)
    args = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 3, "max_steps": 8}
    build(tmp_path / "whole", **args).train()
    killed = tmp_path / "killed"
    build(killed, **args).train()  # its record goes on past the checkpoint: what follows must be taken back
    for later in killed.glob("checkpoint-*"):
        if int(later.name.split("-")[1]) > stop:
            shutil.rmtree(later)
    build(killed, **args).train(resume_from_checkpoint=str(killed / f"checkpoint-{stop}"))
    assert read_trace(killed) == read_trace(tmp_path / "whole")
    assert [line["step"] for line in weights_of(killed)] == [2, 5, 7] == [line["step"] for line in losses_of(killed)]
    found, expected = rows_of(killed), rows_of(tmp_path / "whole")
    assert list(found) == list(expected)
    assert all(np.array_equal(found[start], expected[start]) for start in expected)


def test_a_second_training_by_the_same_trainer_begins_its_record_anew(tmp_path):
    trainer = build(tmp_path, logging_steps=100)
    trainer.train()
    trainer.train()
    assert [line["steps"] for line in weights_of(tmp_path)] == [5]
    assert [len(rows) for rows in rows_of(tmp_path).values()] == [20]


def of_rank(accelerator, folder):
    set_seed(0)
    shared = Path(folder) / "two"
    build(shared, per_device_train_batch_size=1).train()
    accelerator.wait_for_everyone()
    found = {f"rows {start}": rows for start, rows in rows_of(shared).items()}
    return (
        found
        | {"lines": np.array(str(weights_of(shared)))}
        | {"losses": np.array([of["loss"] for line in losses_of(shared) for of in line["sources"].values()])}
    )


def test_two_ranks_leave_the_record_of_one(tmp_path):
    build(tmp_path / "one").train()
    expected, lines = rows_of(tmp_path / "one"), str(weights_of(tmp_path / "one"))
    losses = [of["loss"] for line in losses_of(tmp_path / "one") for of in line["sources"].values()]
    for found in on_ranks(of_rank, 2, tmp_path):
        assert str(found["lines"]) == lines
        assert found["losses"] == pytest.approx(losses)
        for start, rows in expected.items():
            steps = [sorted(part.tolist()) for part in np.split(found[f"rows {start}"], 5)]
            assert steps == [sorted(part.tolist()) for part in np.split(rows, 5)]


def test_many_micro_batches_are_read_before_the_line_without_a_change_of_it():
    accelerator = type("One", (), {"num_processes": 1})()
    log, weights = WeightLog(), np.random.default_rng(0).random((MOST + 5, 3)).astype(np.float32)
    add = partial(log.add, labels_S=torch.tensor([3, 1, 0]), losses_S=torch.zeros(3), rows_S=None, step=7)
    for row in weights:
        add(torch.from_numpy(row))
    assert log.first == 7
    line, counted = log.line(accelerator), weights[:, :2].astype(np.float64)
    assert line["samples"] == counted.size
    assert (line["min"], line["max"]) == (counted.min(), counted.max())
    assert line["mean"] == pytest.approx(counted.mean())
    assert log.line(accelerator) == {}
