"""Any number of ranks is one run: the same decisions, the same rows in the same order, the same losses.

Each run has a global batch of 12 rows, split over 1, 2 or 3 ranks. 61 rows are scored in batches that no number of
ranks divides.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from dataflex.run.checkpoints import incompleteness
from dataflex.run.record import read_trace
from rank_run import Job
from ranks import HUNG, answers, selections, stream, torchrun

GLOBAL = 12
KINDS = {
    "select": ("dynamic_select", "loss", {"token_budget": 90}),
    "less": ("dynamic_select", "less", {"token_budget": 90}),
    "mix": ("dynamic_mix", "random", {}),
    "streams": ("dynamic_mix", "random", {}),
    "weight": ("dynamic_weight", "loss", {}),
    "square": ("dynamic_weight", "square", {}),
}
RESUMED = (
    "select",
    "less",
    "mix",
    "streams",
    "square",
)  # the loss weighter compares rows inside a micro-batch: accumulation matters to it
MIDDLE = 3  # a step inside a segment


def job(kind: str, folder: Path, batch: int, accumulation: int = 1, resume: Path | None = None) -> Job:
    train_type, component, params = KINDS[kind]
    args = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    streams = kind == "streams"
    keys = {"mixture_sample_rule": "uniform"} if streams else {}
    saved = None if resume is None else str(resume)
    evaluates = kind == "mix"
    if evaluates:
        args["per_device_eval_batch_size"] = 1
    return Job(str(folder), train_type, component, params, args, saved, keys=keys, streams=streams, evaluates=evaluates)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def one(folder) -> Path:
    here = folder / "one"
    here.mkdir()
    jobs = [job(kind, here / kind, GLOBAL) for kind in KINDS]
    jobs += [job(kind, here / f"{kind} accumulated", GLOBAL // 2, 2) for kind in RESUMED]
    done = torchrun(folder, jobs, 1)
    assert done.code == 0, done.stderr[-3000:]
    return here


@pytest.fixture(scope="module")
def two(folder, one) -> Path:
    here = folder / "two"
    jobs = [job(kind, here / kind, GLOBAL // 2) for kind in KINDS]
    saved = {kind: one / f"{kind} accumulated" / f"checkpoint-{MIDDLE}" for kind in RESUMED}
    jobs += [job(kind, here / f"{kind} resumed", GLOBAL // 2, resume=saved[kind]) for kind in RESUMED]
    done = torchrun(folder, jobs, 2)
    assert done.code == 0, done.stderr[-3000:]
    return here


@pytest.fixture(scope="module")
def three(folder) -> Path:
    here = folder / "three"
    done = torchrun(folder, [job(kind, here / kind, GLOBAL // 3) for kind in KINDS], 3)
    assert done.code == 0, done.stderr[-3000:]
    return here


@pytest.fixture(params=["two", "three"])
def many(request) -> Path:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_are_those_of_one_rank(one, many, kind):
    expected = answers(one / kind)[0]["losses"]
    assert len(expected) == 6
    assert expected[0] != expected[-1]
    assert answers(many / kind)[0]["losses"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("which", ["mix", "mix resumed"])
def test_the_overall_evaluation_loss_is_the_mean_over_rows_on_every_rank(one, two, which):
    """Not compared with one rank: transformers counts the row that fills the last batch of several ranks by tokens."""
    found = [*answers(two / which), *answers(one / "mix")]
    for answer in found:
        metrics = answer["evaluation"]
        parts = [metrics[f"eval_{name}_loss"] for name in "abc"]
        assert metrics["eval_loss"] == pytest.approx(sum(parts) / 3, rel=1e-6), "there are 7 rows of each"
    assert found[0]["evaluation"]["eval_loss"] == found[1]["evaluation"]["eval_loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_ranks_together_see_the_rows_of_one_rank_in_the_same_order(one, many, kind):
    assert stream(answers(many / kind)) == stream(answers(one / kind))


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_of_a_step_is_on_two_ranks(many, kind):
    found = answers(many / kind)
    for batches in zip(*(answer["seen"] for answer in found), strict=True):
        if kind not in ("mix", "streams"):  # a small source may come round again within a step
            assert not any(set(a) & set(b) for a, b in combinations(batches, 2))
        assert {len(batch) for batch in batches} == {GLOBAL // len(found)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_rank_ends_with_the_same_weights(many, kind):
    found = answers(many / kind)
    assert len(found) in (2, 3)
    assert len({answer["weights"] for answer in found}) == 1


@pytest.mark.parametrize("kind", ["select", "mix", "streams"])
def test_the_decisions_are_those_of_one_rank(one, many, kind):
    expected = [line["decision_hash"] for line in read_trace(one / kind)]
    assert len(set(expected)) == 2
    assert [line["decision_hash"] for line in read_trace(many / kind)] == expected
    assert selections(many / kind) == selections(one / kind)


@pytest.mark.parametrize("kind", RESUMED)
def test_a_run_saved_on_one_rank_goes_on_with_two(one, two, kind):
    whole = one / f"{kind} accumulated"
    resumed = answers(two / f"{kind} resumed")
    assert stream(resumed) == stream(answers(whole))[MIDDLE * GLOBAL :]
    assert resumed[0]["losses"] == pytest.approx(answers(whole)[0]["losses"], rel=1e-4)
    hashes = {line["step"]: line.get("decision_hash") for line in read_trace(whole)}  # lines of weights have none
    for line in read_trace(two / f"{kind} resumed"):
        assert line.get("decision_hash") == hashes[line["step"]]


def test_a_run_saved_on_two_ranks_goes_on_with_one(folder, two):
    here = folder / "back"
    saved = {kind: two / kind / f"checkpoint-{MIDDLE}" for kind in RESUMED}
    done = torchrun(folder, [job(kind, here / kind, GLOBAL // 2, 2, saved[kind]) for kind in RESUMED], 1)
    assert done.code == 0, done.stderr[-3000:]
    for kind in RESUMED:
        (resumed,) = answers(here / kind)
        assert stream([resumed]) == stream(answers(two / kind))[MIDDLE * GLOBAL :]
        assert resumed["losses"] == pytest.approx(answers(two / kind)[0]["losses"], rel=1e-4)


def fault(folder: Path, component: str, train_type: str = "dynamic_select") -> tuple[Path, str]:
    """Runs into a fault on two ranks; returns the folder and what stderr says. A hang fails by its time limit."""
    here = folder / f"{component} {train_type}"
    args = {"per_device_train_batch_size": GLOBAL // 2}
    done = torchrun(folder, [Job(str(here), train_type, component, {}, args)], 2)
    assert done.code != 0
    return here, done.stderr


def test_ranks_that_decide_differently_are_all_stopped_by_an_error_that_names_the_rank(folder):
    here, _ = fault(folder, "own_opinion")
    errors = [answer["error"] for answer in answers(here)]
    said = "ComponentError: selector 'own_opinion' at update 1 (step 4) decided differently on rank 1 than on rank 0"
    assert len(errors) == 2
    assert all(error.startswith(said) for error in errors)
    assert [line["step"] for line in read_trace(here)] == [2]
    assert all(len(answer["seen"]) == 4 for answer in answers(here))
    assert incompleteness(here / "checkpoint-4") is None


def test_an_error_on_one_rank_ends_the_others(folder):
    _, stderr = fault(folder, "one_rank_raises")
    assert "selector 'one_rank_raises' at update 0 (step 2) raised RuntimeError: only here" in stderr


@pytest.mark.parametrize("train_type", ["dynamic_select", "dynamic_weight"])
def test_a_rank_that_is_killed_takes_the_others_with_it(folder, train_type):
    here, stderr = fault(folder, "one_rank_dies", train_type)
    assert "SIGKILL" in stderr
    last = 4 if train_type == "dynamic_select" else 3
    assert incompleteness(here / f"checkpoint-{last}") is None
    assert not (here / f"checkpoint-{last + 1}").exists()


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
def test_two_nodes_are_one_run(workspace, tmp_path, train):
    """Two launchers that meet on the loopback interface, each as `dataflex-cli train` starts it on its machine."""
    short = ["warmup_step=2", "update_step=2", "update_times=2"]
    quick = ["do_eval=false", "plot_loss=false", "logging_steps=1", "cutoff_len=64", "max_samples=50"]
    quick.append("average_tokens_across_devices=true")  # transformers 4.51 has another default
    two = ["per_device_train_batch_size=2", f"output_dir={tmp_path / 'two'}"]
    command = [sys.executable, "-m", "dataflex", "train", str(workspace / "select_loss.yaml"), *short, *quick, *two]
    meeting = {"NNODES": "2", "NPROC_PER_NODE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    environ = os.environ | {"FORCE_TORCHRUN": "1", "OMP_NUM_THREADS": "1"} | meeting
    nodes = [
        subprocess.Popen(command, env=environ | {"NODE_RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [node.communicate(timeout=HUNG)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said[0][-2000:] + said[1][-2000:]
    assert train("select_loss", *short, *quick, "per_device_train_batch_size=4", out="one") == 0
    hashes = [[line["decision_hash"] for line in read_trace(tmp_path / name)] for name in ("one", "two")]
    assert len(hashes[0]) == 2
    assert hashes[0] == hashes[1]
    losses = [
        json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"] for name in ("one", "two")
    ]
    one, both = ([entry["loss"] for entry in history if "loss" in entry] for history in losses)
    assert one == pytest.approx(both, rel=1e-4)
