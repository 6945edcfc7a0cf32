"""Mixers that learn as they go decide the same on any number of ranks, and go on from a checkpoint of another one."""

from __future__ import annotations

from pathlib import Path

import pytest
from dataflex.run.record import read_updates
from dataflex.testing import tiny_model
from rank_run import Job
from ranks import answers, selections, stream, torchrun

GLOBAL = 12
ADO = {"start_step": 3, "skip_steps": 0, "subsample": 1, "fit_every": 1, "smoothing_window": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("mixers")
    tiny_model(seed=5).save_pretrained(made / "reference")
    (made / "mixture.yaml").write_text("points: [{at: 0, proportions: [1, 1]}, {at: 100, proportions: [1, 3]}]")
    return made


def kinds(folder: Path) -> dict[str, tuple[str, dict]]:
    return {
        "odm": ("odm", {"variant": "code"}),
        "ado": ("ado", ADO),
        "loss": ("loss", {"smoothing": 0.5}),
        "doremi": ("doremi", {"reference_model": str(folder / "reference"), "eta": 5.0}),
        "schedule": ("schedule", {"file": str(folder / "mixture.yaml")}),
        "tokens": (
            "schedule",
            {"points": [{"at": 0, "proportions": [1, 1]}, {"at": 9999, "proportions": [0, 1]}], "by": "tokens"},
        ),
        "dynamic_moe": ("dynamic_moe", {"eval_rows": 5, "layers": "all"}),
        "objective": ("schedule", {"file": str(folder / "mixture.yaml")}),
        "doge": ("doge", {"mu": 0.001, "target": "eval"}),
        "doge, weights": ("doge", {"mu": 0.001, "use": "loss_weights", "layers": "all"}),
        "pike": ("pike", {"tau": 2.0}),
        "entropy": ("odm", {"reward": "entropy", "variant": "code"}),
        "norm": ("odm", {"reward": "gradient_norm", "variant": "code"}),
    }


NAMES = ("odm", "ado", "loss", "doremi", "schedule", "tokens", "dynamic_moe", "objective")
NAMES += ("doge", "doge, weights", "pike", "entropy", "norm")
KEYS = {"objective": {"objective_proportions": [1, 4]}}
MODELS = {"dynamic_moe": {"kind": "mixtral"}}


def jobs(folder: Path, out: Path, batch: int, accumulation: int, resume: Path | None = None) -> list[Job]:
    args = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": -1}
    args |= {"save_steps": 5} if resume is None else {"save_strategy": "no"}
    keys = {"warmup_step": 3, "update_step": 3, "update_times": 4}
    return [
        Job(
            str(out / name), "dynamic_mix", component, params, args,
            None if resume is None else str(resume / name / "checkpoint-5"),
            model=MODELS.get(name, {}), keys=keys | KEYS.get(name, {}),
        )
        for name, (component, params) in kinds(folder).items()
    ]  # fmt: skip


@pytest.fixture(scope="module")
def one(folder) -> Path:
    done = torchrun(folder, jobs(folder, folder / "one", GLOBAL // 2, 2), 1)
    assert done.code == 0, done.stderr[-3000:]
    return folder / "one"


@pytest.fixture(scope="module")
def two(folder, one) -> Path:
    more = jobs(folder, folder / "resumed", GLOBAL // 2, 1, resume=one)
    done = torchrun(folder, jobs(folder, folder / "two", GLOBAL // 2, 1) + more, 2)
    assert done.code == 0, done.stderr[-3000:]
    return folder / "two"


def shares(out: Path) -> list[list[float]]:
    return [list(line["proportions"].values()) for line in read_updates(out)]


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_make_the_run_of_one(one, two, name):
    assert len(shares(one / name)) == 4
    for mine, theirs in zip(shares(two / name), shares(one / name), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert selections(two / name) == selections(one / name)
    assert stream(answers(two / name)) == stream(answers(one / name))
    losses = [answers(out / name)[0]["losses"] for out in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len({answer["weights"] for answer in answers(two / name)}) == 1


@pytest.mark.parametrize("name", ["odm", "ado", "tokens", "dynamic_moe"])
def test_what_is_learnt_reaches_the_proportions(one, name):
    assert shares(one / name)[0] != pytest.approx(shares(one / name)[-1], rel=1e-3)


def test_the_weights_of_doremi_are_those_of_one_rank(one, two):
    mine, theirs = (read_updates(out / "doremi")[-1] for out in (two, one))
    assert list(mine["weights"].values()) == pytest.approx(list(theirs["weights"].values()), rel=1e-3)
    assert max(mine["weights"].values()) - min(mine["weights"].values()) > 0.01
    assert (two / "doremi" / "doremi_weights.json").exists()


def test_two_ranks_see_the_same_experts_used(one, two):
    """Each rank routes its part of the held-out rows; the counts of tokens are of both parts."""
    for mine, theirs in zip(read_updates(two / "dynamic_moe"), read_updates(one / "dynamic_moe"), strict=True):
        assert mine["gate_distance"] == pytest.approx(theirs["gate_distance"], rel=1e-6)
        assert min(mine["gate_distance"].values()) > 0.01
        assert len(set(mine["gate_distance"].values())) == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_run_saved_on_one_rank_goes_on_with_two(folder, one, two, name):
    resumed = {line["step"]: line for line in read_updates(folder / "resumed" / name)}
    whole = {line["step"]: line for line in read_updates(one / name)}
    later = [step for step in whole if step >= 5]
    assert later == [6, 9, 12]
    for step in later:
        mine, theirs = (list(lines[step]["proportions"].values()) for lines in (resumed, whole))
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert stream(answers(folder / "resumed" / name)) == stream(answers(one / name))[5 * GLOBAL :]
