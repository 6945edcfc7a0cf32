"""Histograms for the experiment trackers that have them.

Numbers reach every tracker of ``report_to`` through ``Trainer.log`` and its callback of transformers. Histograms have
no way through it, so they are handed over here, each tracker found by its callback: nothing is imported that the run's
``report_to`` has not imported already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from transformers.integrations.integration_utils import SwanLabCallback, TensorBoardCallback, WandbCallback

from dataflex.run.tracked_numbers import Histogram

OF_TRAINING = "train/"
"""What the callbacks of transformers put before the name of a number that is none of an evaluation."""
_THEIR_SWANLAB = "swanlab.integration.transformers"  # the callback of SwanLab itself, which LLaMA-Factory takes


def send_histograms(callbacks: Iterable[Any], histograms: Mapping[str, Histogram], step: int) -> None:
    """Sends histograms to the trackers that have them. Called on the rank that reports.

    MLflow has none, nor have others: what they get are the numbers, quartiles among them.

    Args:
        callbacks: The trainer's callbacks.
        histograms: Name -> histogram.
        step: Global optimizer steps done.
    """
    if not histograms:
        return
    senders = _senders()
    for callback in callbacks:
        for kind, send in senders:
            if isinstance(callback, kind):
                for name, histogram in histograms.items():
                    send(callback, OF_TRAINING + name, _with_width(histogram), step)


def _with_width(histogram: Histogram) -> Histogram:
    """Returns a histogram whose bins have a width; where all numbers are the same, one bin around them."""
    low, high = histogram["edges"][0], histogram["edges"][-1]
    if low < high:
        return histogram
    return {"edges": [low - 0.5, high + 0.5], "counts": [sum(histogram["counts"])]}


def _senders() -> list[tuple[type[Any], Callable[[Any, str, Histogram, int], None]]]:
    """Returns the callbacks of trackers that have histograms, and how each is given one."""
    theirs = sys.modules.get(_THEIR_SWANLAB)
    others: list[tuple[type[Any], Callable[[Any, str, Histogram, int], None]]] = []
    if theirs is not None:
        others = [(theirs.SwanLabCallback, _to_swanlab)]
    return [(TensorBoardCallback, _to_tensorboard), (WandbCallback, _to_wandb), (SwanLabCallback, _to_swanlab), *others]


def _to_tensorboard(callback: Any, name: str, histogram: Histogram, step: int) -> None:
    """The protocol buffer wants sums as well, which the middles of the bins give nearly; no page shows them."""
    if callback.tb_writer is None:  # closed at the end of training
        return
    edges, counts = histogram["edges"], histogram["counts"]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    total = sum(count * middle for count, middle in zip(counts, middles, strict=True))
    squares = sum(count * middle**2 for count, middle in zip(counts, middles, strict=True))
    callback.tb_writer.add_histogram_raw(
        name, edges[0], edges[-1], sum(counts), total, squares, list(edges[1:]), list(counts), step
    )


def _to_wandb(callback: Any, name: str, histogram: Histogram, step: int) -> None:
    import wandb

    if wandb.run is not None:
        shown = wandb.Histogram(np_histogram=(np.array(histogram["counts"]), np.array(histogram["edges"])))
        wandb.log({name: shown, f"{OF_TRAINING}global_step": step})


def _to_swanlab(callback: Any, name: str, histogram: Histogram, step: int) -> None:
    """SwanLab draws charts of ECharts: a bar for each bin."""
    import swanlab

    edges = histogram["edges"]
    bins = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    bar = swanlab.echarts.Bar()
    bar.add_xaxis(bins)
    bar.add_yaxis("samples", list(histogram["counts"]))
    swanlab.log({name: bar}, step=step)
