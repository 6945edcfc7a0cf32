"""Trains the proxies, as many at a time as there are devices, and reads their losses."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime

from dataflex.core.errors import ConfigError
from dataflex.experiments.going_on import SIGNALS, going_on
from dataflex.experiments.planned_runs import FINISHED, PlannedRun
from dataflex.experiments.run_figures import figures
from dataflex.launch.logged_run import run_logged
from dataflex.launch.supervised import Programs
from dataflex.utils.logging import logger
from dataflex.utils.progress import duration

START = "=== dataflex-cli regmix starts this proxy"
VISIBLE = "CUDA_VISIBLE_DEVICES"

Train = Callable[[PlannedRun, Sequence[str], Mapping[str, str], Programs], int]
"""Trains a run as its plan says, with overrides and more environment; returns the exit code."""


class StoppedSearchError(Exception):
    """A signal, or a proxy that failed, has stopped the search.

    Attributes:
        code: The exit code.
        why: What is to be said.
    """

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code, self.why = code, why


def devices(environ: Mapping[str, str], count: int) -> list[str]:
    """Returns the CUDA devices that proxies are given, as the environment numbers them.

    Args:
        environ: The environment.
        count: Devices that torch sees.
    """
    named = [name.strip() for name in environ.get(VISIBLE, "").split(",") if name.strip()]
    return (named or [str(number) for number in range(count)])[:count]


def visible_devices() -> list[str]:
    """Returns the CUDA devices of this machine that may be used; none where there are none."""
    import torch

    return devices(os.environ, torch.cuda.device_count() if torch.cuda.is_available() else 0)


@dataclass
class _Work:
    """How far the proxies are."""

    train: Train
    programs: Programs
    total: int
    finished: int
    jobs: int
    free: list[str]
    began: float = field(default_factory=time.monotonic)
    done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def left(self) -> str:
        """The time that the other proxies take, if they are like those before; blank where none has ended."""
        if not self.done:
            return ""
        each = (time.monotonic() - self.began) / self.done
        return f"; about {duration(each * (self.total - self.finished))} left"


def train_all(runs: Sequence[PlannedRun], jobs: int, available: Sequence[str], train: Train | None = None) -> None:
    """Trains what is not finished.

    After a proxy that failed none is started any more: the others differ from it by their mixture alone.

    Args:
        runs: The proxies.
        jobs: How many at a time.
        available: CUDA devices; each proxy has one of its own where several are trained at a time, and all of them
            where one is.
        train: Trains one; another process of this program unless given.

    Raises:
        ConfigError: A folder holds a run of another configuration; found out before any starts.
        StoppedSearchError: A signal came, or a proxy failed.
    """
    states = [run.state() for run in runs]
    open_runs = [(run, state) for run, state in zip(runs, states, strict=True) if state != FINISHED]
    if len(open_runs) < len(runs):
        logger.info("%d of %d proxies are finished, and are kept", len(runs) - len(open_runs), len(runs))
    programs = Programs()
    shared = [available[slot % len(available)] for slot in range(jobs)] if available and jobs > 1 else []
    work = _Work(train or _train, programs, len(runs), len(runs) - len(open_runs), jobs, shared)
    with programs.listening(), ThreadPoolExecutor(jobs, thread_name_prefix="proxy") as pool:
        waiting: set[Future[None]] = set()
        rest = list(open_runs)
        failed: StoppedSearchError | None = None
        while rest or waiting:
            while rest and failed is None and len(waiting) < jobs:
                waiting.add(pool.submit(_one, *rest.pop(0), work))
            if not waiting:
                break
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for each in ended:
                error = each.exception()
                if isinstance(error, StoppedSearchError):
                    failed = failed or error
                elif error is not None:
                    raise error
    if failed is not None:
        raise failed


def _one(run: PlannedRun, state: str, work: _Work) -> None:
    overrides, how = going_on(run, state)
    with work.lock:
        environ = dict(run.write())
        device = work.free.pop(0) if work.free else None
        if device is not None:
            environ |= {VISIBLE: device}
    logger.info("%s of %d starts%s; it writes to %s", run.arm.name, work.total, how, run.log)
    code = work.train(run, overrides, environ, work.programs)
    with work.lock:
        if device is not None:
            work.free.append(device)
        work.done += 1
        work.finished += 1
        far = f"{work.finished} of {work.total} are finished{work.left}"
    if code in SIGNALS:
        raise StoppedSearchError(code, "stopped; finished proxies are kept, and the same command goes on")
    if code or run.state() != FINISHED:
        why = f"failed with exit code {code}" if code else "ended without its results"
        logger.error("%s %s. Why stands at the end of %s", run.arm.name, why, run.log)
        raise StoppedSearchError(1, "no more proxies are started; finished ones are kept")
    logger.info("%s has ended: %s", run.arm.name, far)


def _train(run: PlannedRun, overrides: Sequence[str], environ: Mapping[str, str], programs: Programs) -> int:
    heading = f"{START}: {datetime.now(UTC).isoformat(timespec='seconds')} {' '.join(overrides)}".rstrip()
    return run_logged(overrides, run.file, run.log, heading, environ, programs)


def losses_so_far(run: PlannedRun, metrics: Sequence[str]) -> list[float | None] | None:
    """Returns the losses of a proxy, in the order of ``metrics``; None where it has not ended."""
    if run.state() != FINISHED:
        return None
    numbers = figures(run).numbers
    return [numbers.get(metric) for metric in metrics]


def losses_of(run: PlannedRun, metrics: Sequence[str]) -> list[float]:
    """Returns the losses of a finished proxy, in the order of ``metrics``.

    Raises:
        ConfigError: It has no such loss, or one that is not finite.
    """
    numbers = figures(run).numbers
    missing = [metric for metric in metrics if metric not in numbers]
    if missing:
        has = ", ".join(name for name in sorted(numbers) if name.endswith("loss")) or "no loss"
        raise ConfigError(f"targets: {run.folder} has no {missing[0]}; it has {has} -> name one of these")
    bad = [metric for metric in metrics if not math.isfinite(numbers[metric])]
    if bad:
        raise ConfigError(
            f"{run.arm.name}: its {bad[0]} is {numbers[bad[0]]}: it has diverged -> lower learning_rate in proxy, and "
            "use another output_dir"
        )
    return [numbers[metric] for metric in metrics]
