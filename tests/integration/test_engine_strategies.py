"""Mixers that watch training and every weighter make the run of DDP under the other engines.

docs/engines.md has the table. Two ranks, an accumulation of 2. One launch per engine trains them all; those that keep a
state also go on from a checkpoint inside a segment. DeepSpeed is tested where it is installed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataflex.run.record import read_trace
from dataflex.testing import tiny_model
from engines import ENGINES, Engine
from rank_run import Job
from ranks import answers, selections, skip_without, torchrun

DOCS = Path(__file__).parents[2] / "docs"
MIDDLE = 3
SIZES = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": -1}
ADO = {"start_step": 3, "skip_steps": 0, "subsample": 1, "fit_every": 1, "smoothing_window": 5}


@dataclass(frozen=True)
class Strategy:
    """What is run under each engine.

    Attributes:
        train_type: ``dynamic_mix`` or ``dynamic_weight``.
        params: Of the component.
        keys: dataflex's own.
        kind: Of the tiny model.
        state: Whether it keeps a state, so that it is resumed as well.
    """

    train_type: str
    params: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "llama"
    state: bool = False


STRATEGIES = {
    "odm": Strategy("dynamic_mix", {"variant": "code"}, state=True),
    "ado": Strategy("dynamic_mix", ADO, {"warmup_step": 3, "update_step": 3, "update_times": 3}, state=True),
    "doremi": Strategy("dynamic_mix", {"reference_model": "FOLDER/reference", "eta": 5.0}, state=True),
    "doge": Strategy("dynamic_mix", {"mu": 0.001, "use": "loss_weights"}, state=True),
    "pike": Strategy("dynamic_mix", {"gradient_every": 2}, state=True),
    "dynamic_moe": Strategy("dynamic_mix", {"eval_rows": 5}, kind="mixtral", state=True),
    "column": Strategy("dynamic_weight", {"file": "FOLDER/column.npy"}),
    "dataset": Strategy("dynamic_weight", {"weights": {"a": 3.0}}),
    "trim": Strategy("dynamic_weight", {"share": 0.25, "scope": "step", "normalise": True}),
    "focal": Strategy("dynamic_weight", {"normalise": True}, {"weight_objective": "token"}),
    "joint_update_aware": Strategy("dynamic_weight", {"refresh": 3, "tau": 0.3}, state=True),
    "adapt": Strategy("dynamic_weight", {"refresh": 3, "anchors": 4}, state=True),
    "balancer": Strategy("dynamic_weight", {"ema_decay": 0.5}, state=True),
    "loss": Strategy(
        "dynamic_weight", {"scope": "step", "temperature_start": 9.0}, {"weight_logits": "chunked"}, state=True
    ),
}
RESUMED = [name for name, strategy in STRATEGIES.items() if strategy.state]


def job(folder: Path, shared: Path, name: str, engine: Engine, resume: Path | None = None) -> Job:
    strategy = STRATEGIES[name]
    saves = {"save_steps": MIDDLE} if strategy.state and resume is None else {"save_strategy": "no"}
    args = SIZES | saves | engine.args
    if "fsdp_config" in args and strategy.kind != "llama":
        wrapped = f"{strategy.kind.capitalize()}DecoderLayer"
        args["fsdp_config"] = args["fsdp_config"] | {"transformer_layer_cls_to_wrap": wrapped}
    params = {
        key: value.replace("FOLDER", str(shared)) if isinstance(value, str) else value
        for key, value in strategy.params.items()
    }
    steps = {"warmup_step": 2, "update_step": 2, "update_times": 2} | dict(strategy.keys)
    return Job(
        str(folder / (name if resume is None else f"{name} resumed")),
        strategy.train_type,
        name,
        params,
        args,
        None if resume is None else str(resume),
        engine.shards,
        {"kind": strategy.kind},
        steps,
    )


def launched(folder: Path, shared: Path, engine: Engine) -> Path:
    """Trains every strategy on two ranks of one process group, and those with a state a second time from the middle."""
    jobs = [job(folder, shared, name, engine) for name in STRATEGIES]
    jobs += [job(folder, shared, name, engine, folder / name / f"checkpoint-{MIDDLE}") for name in RESUMED]
    done = torchrun(folder, jobs, 2, **engine.environ)
    assert done.code == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("shared")
    tiny_model(seed=5).save_pretrained(made / "reference")
    np.save(made / "column.npy", np.linspace(0.5, 1.5, 72))
    return made


@pytest.fixture(scope="module")
def plain(tmp_path_factory, shared) -> Path:
    return launched(tmp_path_factory.mktemp("ddp"), shared, ENGINES["DDP"])


@pytest.fixture(scope="module", params=ENGINES)
def run(request, tmp_path_factory, shared, plain) -> tuple[Engine, Path]:
    engine = ENGINES[request.param]
    skip_without(engine)
    folder = plain if request.param == "DDP" else launched(tmp_path_factory.mktemp("engine"), shared, engine)
    return engine, folder


def shares(folder: Path) -> list[list[float]]:
    return [list(line["proportions"].values()) for line in read_trace(folder) if "proportions" in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_an_engine_mixes_and_weighs_as_ddp_does(run, plain, name):
    engine, folder = run
    found, expected = answers(folder / name), answers(plain / name)
    wraps = engine.wraps.replace("Llama", STRATEGIES[name].kind.capitalize())
    assert [answer["engine"] for answer in found] == [wraps] * 2
    assert found[0]["losses"] == pytest.approx(expected[0]["losses"], rel=1e-5)
    assert found[0]["weighed"] == pytest.approx(expected[0]["weighed"], rel=1e-4)
    assert [answer["seen"] for answer in found] == [answer["seen"] for answer in expected]
    for mine, theirs in zip(shares(folder / name), shares(plain / name), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert selections(folder / name) == selections(plain / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_an_engine_resumes_with_every_estimate(run, name):
    folder = run[1]
    whole, resumed = answers(folder / name), answers(folder / f"{name} resumed")
    for key in ("seen", "losses", "weights"):
        mine, theirs = [answer[key] for answer in resumed], [answer[key] for answer in whole]
        assert mine == ([answer[MIDDLE * 2 :] for answer in theirs] if key == "seen" else theirs), key
    assert shares(folder / f"{name} resumed") == shares(folder / name)[-len(shares(folder / f"{name} resumed")) :]


@pytest.mark.slow
def test_weights_of_losses_move_in_the_run_that_is_compared(plain):
    weights = [line["weights"] for line in read_trace(plain / "doge") if "proportions" in line]
    assert np.ptp(list(weights[-1].values())) > 1e-6


@pytest.mark.slow
def test_what_is_compared_differs_from_a_run_that_does_nothing(plain):
    """Fails where a strategy is without effect, so that any engine would agree on it."""
    for name, strategy in STRATEGIES.items():
        if strategy.train_type == "dynamic_weight":
            assert max(answers(plain / name)[0]["weighed"]) != pytest.approx(1.0, abs=1e-3), name
        elif name not in ("doremi", "doge"):  # which draw by fixed shares, and weigh the loss
            natural = [11 / 61, 24 / 61, 26 / 61] if name == "dynamic_moe" else [11 / 61, 50 / 61]
            assert shares(plain / name)[-1] != pytest.approx(natural, rel=1e-3), name


def test_the_table_in_the_docs_has_a_row_for_each_strategy_and_a_column_for_each_engine():
    page = (DOCS / "engines.md").read_text(encoding="utf-8")
    head = f"| strategy | {' | '.join(ENGINES)} |"
    assert head in page
    table = page.partition(head)[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `([^`]+)`[^|]*\|(.*)\|$", table, flags=re.MULTILINE)
    assert [name for name, _ in rows] == list(STRATEGIES)
    assert all(cells.split(" | ") == [" pass", *["pass"] * (len(ENGINES) - 2), "pass "] for _, cells in rows)
