"""A run of several axes is one run on any number of ranks: the same record, the same rows, the same losses.

Every combination of selecting, mixing, ordering and weighting has a global batch of 12 rows on one rank and on two. So
have runs whose scores are those that training has seen, each on the rank that saw them; runs whose order is over the
run; and those of a selector that weighs its rows.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composed_jobs import AXES, BUDGET, FILTER, MIX, ORDER, WEIGHT, composed, parts_of, placed
from dataflex.run.record import read_trace
from dataflex.testing import tiny_model
from ranks import answers, stream, torchrun

GLOBAL, MIDDLE = 12, 5
COMBINATIONS = ["+".join(axes) for n in range(1, 5) for axes in itertools.combinations(AXES, n)]
SEEN = placed("selector", "loss", BUDGET | {"scores": "seen", "focus": "high"})
PACING = placed("order", "pacing", {"start": 0.5}, by="loss", over="run")
RUNS: dict[str, list[dict[str, Any]]] = {name: parts_of(name.split("+")) for name in COMBINATIONS} | {
    "a filter without a chooser, and shares": [FILTER, MIX],
    "chosen by seen losses": [SEEN, WEIGHT],
    "chosen by seen losses in each source": [SEEN, MIX, ORDER],
    "ordered by seen losses": [MIX, placed("order", "sorting", {"window": 0}, by="seen", over="stretch")],
    "filtered, and ordered by losses seen lately": [FILTER, placed("order", "saw", by="seen:3", over="run")],
    "ordered over the run": [placed("order", "saw", {"window": 2}, by="loss", over="run")],
    "ordered over the run, by length": [FILTER, MIX, placed("order", "folding", by="length", over="run", every=2)],
    "held back": [MIX, PACING, WEIGHT],
    "rows weighed": [placed("selector", "rescaled"), ORDER],
    "rows, sources and samples weighed": [
        placed("selector", "rescaled"),
        placed("mixer", "doremi", {"reference_model": "FOLDER/reference", "eta": 5.0}),
        WEIGHT,
    ],
}
RESUMED = ("select+mix+order+weight", "chosen by seen losses in each source", "rows, sources and samples weighed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("composed")
    tiny_model(seed=5).save_pretrained(made / "reference")
    return made


def job(folder: Path, out: Path, name: str, batch: int, accumulation: int, resume: Path | None = None):
    parts = [
        part | {"params": {key: _there(value, folder) for key, value in part["params"].items()}} for part in RUNS[name]
    ]
    saves = {"save_steps": MIDDLE} if name in RESUMED and resume is None else {"save_strategy": "no"}
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    return composed(
        out / name, parts, None if resume is None else resume / name / f"checkpoint-{MIDDLE}", **sizes, **saves
    )


def _there(value: Any, folder: Path) -> Any:
    return value.replace("FOLDER", str(folder)) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def one(folder) -> Path:
    done = torchrun(folder, [job(folder, folder / "one", name, GLOBAL // 2, 2) for name in RUNS], 1)
    assert done.code == 0, done.stderr[-3000:]
    return folder / "one"


@pytest.fixture(scope="module")
def two(folder, one) -> Path:
    jobs = [job(folder, folder / "two", name, GLOBAL // 2, 1) for name in RUNS]
    jobs += [job(folder, folder / "resumed", name, GLOBAL // 2, 1, resume=one) for name in RESUMED]
    done = torchrun(folder, jobs, 2)
    assert done.code == 0, done.stderr[-3000:]
    return folder / "two"


def segments(out: Path) -> dict[str, dict[str, np.ndarray]]:
    """Returns what is recorded of the rows of each segment."""
    files = sorted((out / "dataflex_selections").glob("*.npz"))
    return {path.name: dict(np.load(path)) for path in files}


def assert_alike(mine: Any, theirs: Any, where: str = "") -> None:
    """Compares what is read from JSON: all the same, numbers with a point to float tolerance.

    Rounding moves a number over the edge of a bin, and the rows of nearly equal weights change places.
    """
    if isinstance(theirs, dict):
        assert mine.keys() == theirs.keys(), where
        for key in theirs.keys() - {"seconds", "explain_seconds", "histogram"}:
            ends = key in ("most", "least")
            found, expected = ([value for _, value in line[key]] if ends else line[key] for line in (mine, theirs))
            assert_alike(found, expected, f"{where} {key}")
    elif isinstance(theirs, list):
        assert len(mine) == len(theirs), where
        for one, other in zip(mine, theirs, strict=True):
            assert_alike(one, other, where)
    elif isinstance(theirs, float):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-7), where
    else:
        assert mine == theirs, where


def assert_same_record(mine: Path, theirs: Path, first: int = 0) -> None:
    found, expected = ([line for line in read_trace(out) if line["step"] >= first] for out in (mine, theirs))
    assert len(found) == len(expected)
    for line, other in zip(found, expected, strict=True):
        assert_alike(line, other, f"step {other['step']}, {other['kind']}")
    rows = {name: arrays for name, arrays in segments(theirs).items() if int(name[5:13]) >= first}
    assert {name: arrays for name, arrays in segments(mine).items() if int(name[5:13]) >= first}.keys() == rows.keys()
    for name, arrays in rows.items():
        again = segments(mine)[name]
        assert again.keys() == arrays.keys()
        assert again["indices"].tolist() == arrays["indices"].tolist(), name
        for key in arrays.keys() - {"indices"}:
            np.testing.assert_allclose(again[key], arrays[key], rtol=1e-4, err_msg=f"{name} {key}")


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_make_the_run_of_one(one, two, name):
    assert_same_record(two / name, one / name)
    found, (expected,) = answers(two / name), answers(one / name)
    assert len(expected["losses"]) == 8
    assert expected["losses"][0] != expected["losses"][-1]
    assert found[0]["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert found[0]["weighed"] == pytest.approx(expected["weighed"], rel=1e-3)
    assert stream(found) == stream([expected])
    assert len({answer["weights"] for answer in found}) == 1


@pytest.mark.parametrize("name", RUNS)
def test_each_part_has_a_line_at_the_updates_that_it_takes_part_in(one, name):
    kinds = {"mixer": "mix", "order": "order", "selector": "select"}
    expected = {
        (step, "filter" if "keep" in part else kinds[part["kind"]])
        for part in RUNS[name]
        if part["kind"] != "weighter"
        for update, step in enumerate((2, 4, 6))
        if update % part.get("every", 1) == 0
    }
    lines = read_trace(one / name)
    assert {(line["step"], line["kind"]) for line in lines if "update" in line} == expected
    assert any(line["kind"] == "weight" for line in lines) == any(part["kind"] == "weighter" for part in RUNS[name])


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_saved_on_one_rank_goes_on_with_two(folder, one, two, name):
    assert_same_record(folder / "resumed" / name, one / name, first=MIDDLE)
    found, (expected,) = answers(folder / "resumed" / name), answers(one / name)
    assert stream(found) == stream([expected])[MIDDLE * GLOBAL :]
    assert found[0]["losses"] == pytest.approx(expected["losses"], rel=1e-4)


def test_what_is_weighed_and_held_back_shows(one):
    """Fails where a part is without effect, so that any number of ranks would agree on it."""
    weights = segments(one / "rows weighed")["step_00000002.npz"]["weights"]
    assert set(weights.round(3)) == {1.0, 4.0}
    both = answers(one / "rows, sources and samples weighed")[0]["weighed"]
    assert max(both) > 1.1
    seen, fresh = (segments(one / name)["step_00000004.npz"] for name in ("chosen by seen losses", "select"))
    assert np.isnan(seen["scores"]).any() or (seen["indices"] != fresh["indices"]).any()
    for axes in itertools.combinations(COMBINATIONS, 2):
        losses = [answers(one / name)[0]["losses"] for name in axes]
        assert losses[0] != losses[1], axes
