"""Runs of several axes for the tests of ranks and engines."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rank_run import Job

BUDGET = {"token_budget": 90}


def placed(kind: str, name: str, params: dict[str, Any] | None = None, **place: Any) -> dict[str, Any]:
    """Returns a part as :class:`~rank_run.Job` takes it."""
    return {"kind": kind, "name": name, "params": params or {}, **place}


FILTER = placed("selector", "loss", BUDGET, keep=0.5, every=2)
CHOOSER = placed("selector", "loss", BUDGET | {"focus": "high"})
MIX = placed("mixer", "odm", {"variant": "code"})
ORDER = placed("order", "saw", {"window": 2}, by="loss", over="stretch")
WEIGHT = placed("weighter", "loss", {"scope": "step", "temperature_start": 4.0}, start=3)

AXES = {"select": [FILTER, CHOOSER], "mix": [MIX], "order": [ORDER], "weight": [WEIGHT]}
"""The parts of each axis. What a sample weighs depends on the whole step, not on the micro-batch that it is in."""

KEYS = {"warmup_step": 2, "update_step": 2, "update_times": 3}


def parts_of(axes: Iterable[str]) -> list[dict[str, Any]]:
    """Returns the parts of some axes."""
    return [part for axis in axes for part in AXES[axis]]


def composed(
    folder: Path, parts: list[dict[str, Any]], resume: Path | None = None, shards: bool = False, **args: Any
) -> Job:
    """Returns a run of 8 steps, with updates at 2, 4 and 6; the filter takes part in the first and the third."""
    args = {"max_steps": -1} | args
    saved = None if resume is None else str(resume)
    return Job(str(folder), "dynamic", args=args, resume=saved, shards=shards, keys=KEYS, parts=parts)
