"""A fault of a component on one rank of a run of several axes: every rank ends, and the error names the component."""

from __future__ import annotations

from pathlib import Path

import pytest
from composed_jobs import BUDGET, placed
from dataflex.run.record import read_trace
from rank_run import Job
from ranks import answers, torchrun

HALF = {"keep": 0.5}
LOSS = placed("selector", "loss", BUDGET)
BY_LOSS = placed("order", "sorting", by="loss", over="stretch")
SHARES = placed("mixer", "static")
DIFFERENT = {
    "filter": [placed("selector", "own_opinion", **HALF), LOSS, BY_LOSS],
    "mixer": [placed("mixer", "own_opinion"), LOSS],
    "selector": [SHARES, placed("selector", "own_opinion"), BY_LOSS],
    "order": [SHARES, LOSS, placed("order", "own_opinion", by="selector", over="stretch")],
    "order over the run": [placed("order", "own_opinion", by="loss", over="run")],
}
"""What decides otherwise on rank 1, at step 4. Who asks for losses then would wait for rank 1, which wants others."""


def job(out: Path, parts, **more) -> Job:
    return Job(str(out), "dynamic", args={"per_device_train_batch_size": 6, "save_strategy": "no"}, parts=parts, **more)


@pytest.fixture(scope="module")
def different(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("different")
    weighs = [placed("selector", "own_weights"), BY_LOSS]
    jobs = [job(folder / name, parts, refused=True) for name, parts in [*DIFFERENT.items(), ("weights", weighs)]]
    done = torchrun(folder, jobs, 2)
    assert done.code == 0, done.stderr[-3000:]
    return folder


def refused(folder: Path, who: str) -> None:
    found = answers(folder)
    said = f"ComponentError: {who} at update 1 (step 4) decided differently on rank 1 than on rank 0 -> "
    assert [answer["error"][: len(said)] for answer in found] == [said, said]
    assert all(len(answer["seen"]) == 4 for answer in found), "no step is trained on what is not agreed"
    assert {line["step"] for line in read_trace(folder)} == {2}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_part_that_decides_otherwise_on_one_rank_is_refused_before_the_next_goes_by_it(different, name):
    refused(different / name, f"{name.partition(' ')[0]} 'own_opinion'")


def test_the_same_rows_with_other_weights_on_one_rank_are_refused(different):
    refused(different / "weights", "selector 'own_weights'")


RAISING = {
    "filter": [placed("selector", "one_rank_raises", **HALF), LOSS, BY_LOSS],
    "selector": [SHARES, placed("selector", "one_rank_raises"), BY_LOSS],
    "order": [placed("selector", "loss", BUDGET, **HALF), placed("order", "one_rank_raises", by="loss", over="run")],
}


@pytest.mark.slow
@pytest.mark.parametrize("what", RAISING)
def test_an_error_on_one_rank_ends_the_others_and_names_the_part(tmp_path, what):
    done = torchrun(tmp_path, [job(tmp_path / "run", RAISING[what])], 2)
    assert done.code != 0
    assert f"{what} 'one_rank_raises' at update 0 (step 2) raised RuntimeError: only here" in done.stderr
    assert read_trace(tmp_path / "run") == []
