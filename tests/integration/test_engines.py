"""Every engine that transformers trains with gives the same dynamic run; docs/engines.md has the table.

Two ranks, select (loss), mix, weight, and all axes together, each run whole and resumed from a checkpoint inside a
segment. DeepSpeed and Ray are tested where they are installed: `pip install
--no-build-isolation deepspeed ray` with DS_BUILD_OPS=0.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DistributedType
from composed_jobs import FILTER, MIX, ORDER, WEIGHT, composed, placed
from dataflex.config.check import check
from dataflex.config.load import read_config
from dataflex.core.errors import ConfigError, InvalidConfigError, Problem
from dataflex.run.record import read_trace
from dataflex.trainer.engine import require_engine
from engines import ENGINES, Engine, fsdp
from rank_run import Job
from ranks import HUNG, answers, selections, skip_without, torchrun

DOCS = Path(__file__).parents[2] / "docs"
MIDDLE = 3
KINDS = {
    "select": ("dynamic_select", "loss", {"token_budget": 90}),
    "mix": ("dynamic_mix", "random", {}),
    "weight": ("dynamic_weight", "loss", {}),
}

SGD: dict[str, Any] = {"gradient_type": "sgd"}
GRADIENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("less", SGD),
    "adam": ("less", {}),
    "sketched": ("less", {"proj_dim": 64}),
    "icons": ("icons", SGD | {"task_boundaries": [4, 5]}),
    "greats": ("greats", SGD | {"rate": 1.0}),
    "greats, drawn": ("greats", {"gradient_type": "adam", "eval_rows": 2, "proj_dim": 64}),
}
TOGETHER = "together"
PARTS = [FILTER, placed("selector", "rescaled"), MIX, ORDER, WEIGHT]  # a filter, a chooser that weighs its rows, ...
RAY = "Ray Train"


def launched(folder: Path, engine: Engine, **changes: Any) -> Path:
    """Runs each kind whole and resumed, on two ranks of one process group."""
    jobs = []
    for kind, (train_type, component, params) in KINDS.items():
        args = {"per_device_train_batch_size": 6} | engine.args | changes
        whole = Job(str(folder / kind), train_type, component, params, args, shards=engine.shards)
        saved = folder / kind / f"checkpoint-{MIDDLE}"
        resumed = Job(str(folder / f"{kind} resumed"), train_type, component, params, args, str(saved), engine.shards)
        jobs += [whole, resumed]
    args = {"per_device_train_batch_size": 6} | engine.args | changes
    saved = folder / TOGETHER / f"checkpoint-{MIDDLE}"
    jobs.append(composed(folder / TOGETHER, PARTS, shards=engine.shards, **args))
    jobs.append(composed(folder / f"{TOGETHER} resumed", PARTS, saved, shards=engine.shards, **args))
    for kind, (component, params) in GRADIENTS.items():
        if params.items() >= SGD.items() or engine.moments:
            args = {"per_device_train_batch_size": 6} | engine.args | changes
            params = {"token_budget": 90, **params}
            jobs.append(Job(str(folder / kind), "dynamic_select", component, params, args, shards=engine.shards))
    done = torchrun(folder, jobs, 2, **engine.environ)
    assert done.code == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return launched(tmp_path_factory.mktemp("ddp"), ENGINES["DDP"])


@pytest.fixture(scope="module", params=ENGINES)
def run(request, tmp_path_factory, plain) -> tuple[Engine, Path]:
    engine = ENGINES[request.param]
    skip_without(engine)
    folder = plain if request.param == "DDP" else launched(tmp_path_factory.mktemp("engine"), engine)
    return engine, folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, TOGETHER])
def test_an_engine_trains_as_ddp_does(run, plain, kind):
    engine, folder = run
    found, expected = answers(folder / kind), answers(plain / kind)
    assert [answer["engine"] for answer in found] == [engine.wraps] * 2
    assert found[0]["losses"] == pytest.approx(expected[0]["losses"], rel=1e-5)
    assert [answer["seen"] for answer in found] == [answer["seen"] for answer in expected]
    assert selections(folder / kind) == selections(plain / kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, TOGETHER])
def test_an_engine_resumes_to_the_same_weights(run, kind):
    folder = run[1]
    whole, resumed = answers(folder / kind), answers(folder / f"{kind} resumed")
    assert [answer["seen"] for answer in resumed] == [answer["seen"][MIDDLE:] for answer in whole]
    assert [answer["losses"] for answer in resumed] == [answer["losses"] for answer in whole]
    assert [answer["weights"] for answer in resumed] == [answer["weights"] for answer in whole]


@pytest.mark.slow
@pytest.mark.parametrize("kind", GRADIENTS)
def test_per_sample_gradients_choose_the_same_rows_under_an_engine(run, plain, kind):
    engine, folder = run
    if GRADIENTS[kind][1].items() >= SGD.items() or engine.moments:
        assert answers(folder / kind)[0]["engine"] == engine.wraps
        assert selections(folder / kind) == selections(plain / kind)


@pytest.mark.slow
def test_moments_that_cannot_be_read_are_refused(tmp_path):
    engine = ENGINES["FSDP 1"]
    args = {"per_device_train_batch_size": 6} | engine.args
    job = Job(str(tmp_path / "run"), "dynamic_select", "less", {}, args, shards=True)
    done = torchrun(tmp_path, [job], 2, **engine.environ)
    assert done.code != 0
    assert re.search("ComponentError: selector 'less': .*-> gradient_type: sgd", done.stderr)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_trains_on_gpus(name, tmp_path):
    engine = ENGINES[name]
    skip_without(engine)
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs: NCCL runs one rank on each")
    on_gpus = dataclasses.replace(engine, environ={}, shards=False)
    folder = launched(tmp_path, on_gpus, use_cpu=False)
    for kind in [*KINDS, TOGETHER]:
        whole, resumed = answers(folder / kind), answers(folder / f"{kind} resumed")
        assert {answer["engine"] for answer in whole} == {engine.wraps}
        assert resumed[0]["losses"] == pytest.approx(whole[0]["losses"], rel=1e-4)


@pytest.mark.slow
def test_fsdp_on_a_cpu_is_refused_where_accelerate_would_take_ddp_without_a_word(tmp_path):
    job = Job(str(tmp_path / "run"), "dynamic_select", "random", {}, {"per_device_train_batch_size": 6} | fsdp(2))
    done = torchrun(tmp_path, [job], 1)
    assert done.code != 0
    assert "ConfigError: fsdp was asked for, but accelerate runs MULTI_CPU on this machine" in done.stderr
    assert not (tmp_path / "run" / "dataflex_trace.jsonl").exists()


def test_deepspeed_is_refused_where_accelerate_would_leave_it_out_without_a_word():
    asked = SimpleNamespace(fsdp=[], fsdp_config={}, deepspeed="zero2.json")
    require_engine(asked, DistributedType.DEEPSPEED)
    with pytest.raises(ConfigError, match="deepspeed was asked for, but accelerate runs MULTI_CPU on this machine"):
        require_engine(asked, DistributedType.MULTI_CPU)


SHORT = ["warmup_step=2", "update_step=2", "update_times=2"]
QUICK = ["do_eval=false", "plot_loss=false", "logging_steps=1", "cutoff_len=64", "max_samples=50"]
OF_KIND = {"select": "select_loss", "mix": "mix_random", "weight": "weight_loss"}


def train_losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def by_ray(workspace, tmp_path_factory) -> Path:
    pytest.importorskip("ray", reason="ray is not installed")
    folder = tmp_path_factory.mktemp("ray")
    size = ["per_device_train_batch_size=2"]
    runs = [
        ["train", str(workspace / f"{name}.yaml"), *SHORT, *QUICK, *size, f"output_dir={folder / kind}", "train_step=6"]
        for kind, name in OF_KIND.items()
    ]
    (folder / "runs.json").write_text(json.dumps(runs))
    script = Path(__file__).parent / "ray_run.py"
    environ = os.environ | {"USE_RAY": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(folder / "runs.json")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=4 * HUNG)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_rays_workers_train_as_one_process_does(by_ray, train, tmp_path, kind):
    """Fails where the stand-ins are not put into the workers' LLaMA-Factory: that run would be a static one."""
    assert train(OF_KIND[kind], *SHORT, *QUICK, "per_device_train_batch_size=4", "train_step=6", out=kind) == 0
    hashes = [[line["decision_hash"] for line in read_trace(folder / kind)] for folder in (tmp_path, by_ray)]
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == (0 if kind == "weight" else 2)
    assert train_losses(by_ray / kind) == pytest.approx(train_losses(tmp_path / kind), rel=1e-4)


def test_what_rays_workers_are_sent_and_send_back_survives_the_way(workspace):
    file = workspace / "weight_loss.yaml"
    spec = check(read_config(str(file), []), file.parent)
    assert pickle.loads(pickle.dumps(spec)) == spec
    error = InvalidConfigError([Problem("delta", "found 0"), Problem("temperature", "found 0")])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems) == (str(error), error.problems)


def test_the_table_in_the_docs_has_a_cell_for_each_engine_and_kind_that_a_test_here_runs():
    page = (DOCS / "engines.md").read_text(encoding="utf-8")
    cells = r"(\w+) \| " * (len(KINDS) + 1)
    rows = re.findall(rf"^\| ([^|]+) \| {cells}`(\w+)` \|", page, flags=re.MULTILINE)
    assert [row[0] for row in rows] == [*ENGINES, RAY]
    assert all(row[1:4] == ("pass",) * len(KINDS) for row in rows)
    assert [row[4] for row in rows] == ["pass"] * len(ENGINES) + ["untested"]
    assert {row[5] for row in rows} <= set(globals())
    assert all(name in page.partition("## Without a GPU")[2] for name, engine in ENGINES.items() if engine.shards)
