"""Configurations of several axes, in a folder with a model, two datasets, and a plugin file with three orders."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataflex.config.check import check
from dataflex.config.spec import RunSpec

ROWS = 40
"""Rows of each of the datasets ``a`` and ``b``."""
BATCH = 2
ORDERS = """
from dataflex.core.registry import register_order
from dataflex.interfaces.order import Order

@register_order("wave")
class Wave(Order):
    def __init__(self, window: int = 0) -> None:
        self.window = window

    def arrange(self, scores, *, context):
        return scores.argsort()

@register_order("chance")
class Chance(Wave):
    needs_scores = False

@register_order("slow")
class Slow(Wave):
    over = "run"

@register_order("by_length")
class ByLength(Wave):
    by = "length"
"""
AXES: dict[str, Any] = {
    "selector": [{"component": "loss", "keep": 0.5, "every": 2}, "less"],
    "mixer": "odm",
    "order": {"component": "wave", "by": "length"},
    "weighter": {"component": "loss", "from": 200},
}
COMBINATIONS = [set for size in range(1, 5) for set in itertools.combinations(AXES, size)]
STEPS = {"warmup_step": 2, "update_step": 3, "update_times": 100}


def write_workspace(folder: Path) -> None:
    """Writes model, datasets and plugin file; the folder is to be the working directory."""
    for name in ("model", "data"):
        (folder / name).mkdir()
    (folder / "model" / "config.json").write_text("{}")
    rows = [{"instruction": "x", "input": "", "output": "y", "hardness": 1}] * ROWS
    for name in "ab":
        (folder / "data" / f"{name}.json").write_text(json.dumps(rows))
    info = {name: {"file_name": f"{name}.json"} for name in "ab"}
    (folder / "data" / "dataset_info.json").write_text(json.dumps(info))
    (folder / "orders.py").write_text(ORDERS)
    (folder / "scores.jsonl").write_text("")


def config(**keys: Any) -> dict[str, Any]:
    """Returns a run of two sources with the keys over its own; None leaves a key out."""
    base = {
        "model_name_or_path": "./model",
        "train_type": "dynamic",
        "stage": "sft",
        "do_train": True,
        "dataset": "a,b",
        "eval_dataset": "a",
        "dataset_dir": "data",
        "output_dir": "out",
        "per_device_train_batch_size": BATCH,
        "plugins": ["orders.py"],
        **STEPS,
    }
    return {key: value for key, value in (base | keys).items() if value is not None}


def checked(**keys: Any) -> RunSpec:
    """Returns the run of :func:`config` as validate checks it."""
    return check(config(**keys), Path.cwd())


def combination(axes: tuple[str, ...]) -> dict[str, Any]:
    """Returns the keys of those axes."""
    return {axis: AXES[axis] for axis in axes}


def named(axes: tuple[str, ...]) -> str:
    """Returns the name of a combination."""
    return "+".join(axes)


def sentences(axes: tuple[str, ...]) -> Iterator[str]:
    """Yields what is said of each of those axes."""
    if "selector" in axes:
        yield "filter to half by loss every 2nd update"
    if "mixer" in axes:
        yield "shares by odm"
    if "selector" in axes:
        yield "rows by less within each source" if "mixer" in axes else "rows by less"
    if "order" in axes:
        yield "order wave by length" if "selector" in axes else "order wave by length over the run"
    if "weighter" in axes:
        yield "weights by loss from step 200"
