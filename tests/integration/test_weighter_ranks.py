"""The weighters on two ranks: the losses, the weights and the log of one, and a run that goes on with another number.

A global batch of 12 rows is split over ranks and micro-batches. With ``scope: batch`` the same rows share a micro-batch
only if the accumulation is the same.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dataflex.run.state import load_state
from rank_run import Job
from ranks import answers, stream, torchrun

GLOBAL, MIDDLE = 12, 4
KINDS: dict[str, tuple[str, dict[str, object], dict[str, object]]] = {
    "loss over the step": ("loss", {"scope": "step", "temperature_start": 4.0}, {}),
    "trim": ("trim", {"share": 0.25, "scope": "step", "normalise": True}, {}),
    "focal": ("focal", {"normalise": False}, {"weight_objective": "token"}),
    "adapt": ("adapt", {"refresh": 2, "anchors": 4}, {}),
    "joint_update_aware": ("joint_update_aware", {"refresh": 2, "anchors": 4, "tau": 0.3}, {}),
    "balancer": ("balancer", {"ema_decay": 0.5}, {}),
    "without logits": ("loss", {"scope": "step"}, {"weight_logits": "chunked"}),
}


def jobs(folder: Path, batch: int, accumulation: int, resume: Path | None = None) -> list[Job]:
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    return [
        Job(
            str(folder / kind),
            "dynamic_weight",
            component,
            params,
            sizes,
            None if resume is None else str(resume / kind / f"checkpoint-{MIDDLE}"),
            keys=keys,
        )
        for kind, (component, params, keys) in KINDS.items()
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ranks")
    found = {name: folder / name for name in ("one", "two", "split", "resumed")}
    single = [*jobs(found["one"], GLOBAL, 1), *jobs(found["split"], GLOBAL // 4, 4)]
    assert (done := torchrun(folder, single, 1)).code == 0, done.stderr[-3000:]
    double = [*jobs(found["two"], GLOBAL // 4, 2), *jobs(found["resumed"], GLOBAL // 2, 1, found["split"])]
    assert (done := torchrun(folder, double, 2)).code == 0, done.stderr[-3000:]
    return found


def logged(folder: Path, key: str) -> list[float]:
    (state,) = folder.glob("checkpoint-6/trainer_state.json")
    return [line[key] for line in json.loads(state.read_text())["log_history"] if key in line]


@pytest.mark.parametrize("split", ["two", "split", "resumed"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_split_trains_as_one_batch_on_one_rank_does(folders, kind, split):
    expected, found = answers(folders["one"] / kind)[0], answers(folders[split] / kind)
    assert len(found) == (1 if split == "split" else 2)
    assert len(expected["losses"]) == 6
    assert found[0]["losses"] == pytest.approx(expected["losses"], rel=1e-3)
    assert len({answer["weights"] for answer in found}) == 1
    assert sorted(stream(found)) == sorted(stream([expected]))[-len(stream(found)) :] or split == "resumed"


@pytest.mark.parametrize("kind", KINDS)
def test_the_log_tells_the_weights_of_all_ranks(folders, kind):
    for key in ("dataflex/weight/mean", "dataflex/weight/min", "dataflex/weight/max"):
        expected = logged(folders["one"] / kind, key)
        assert len(expected) == 4  # from the end of the warm-up on
        assert logged(folders["two"] / kind, key) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("split", ["two", "split", "resumed"])
def test_the_balancer_averages_the_norms_of_all_ranks_whatever_the_loop_multiplies_the_loss_by(folders, split):
    expected, found = (
        load_state(folders[name] / "balancer" / "checkpoint-6")["components"]["weighter"][0] for name in ("one", split)
    )
    assert set(expected["norms"]["total"]) == {"a", "b"}
    for mean in ("norms", "rows"):
        for part in ("total", "fix"):
            assert found[mean][part] == pytest.approx(expected[mean][part], rel=1e-3), (mean, part)
