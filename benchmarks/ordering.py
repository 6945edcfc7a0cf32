"""Orders over many rows: time and peak of memory, next to sorting the scores and no more; and what padding one saves.

    python -m benchmarks.ordering [--rows 10000000] [--repeats 3] [--only "saw; length"] [--scores {float64,float32}]

Every installed order arranges the same scores, drawn from a normal distribution, with its defaults; of the patterns one
is walked with a jitter, too. Each repetition begins with ``numpy.argsort(scores, kind="stable")``, which is what the
ratios are to; what is told are medians over repetitions. Scores of 64 bits are the harder case; losses have 32. "check"
is that of the answer, which a run makes of every order's.

The peak is that of the process (``VmHWM`` of Linux) above what it holds before, so the scores are not in it, and what
NumPy's sorts hold inside is. It needs Linux.

The second table is of lengths with a wide spread, log-normal: tokens of padding for each token of a row, where a batch
is padded to its longest row.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dataflex.core.context import UpdateContext
from dataflex.core.kinds import ORDER
from dataflex.core.registry import names
from dataflex.discovery.component_classes import find
from dataflex.discovery.construct import construct
from dataflex.interfaces.order import Order
from dataflex.planning.answers import checked_permutation

from benchmarks.common import at_least, chosen, machine, quieten

WALKED: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in names(ORDER)} | {
    "sorting, window: 5000": ("sorting", {"window": 5000})
}
SPREAD = 1.0  # of the logarithm of a length
MEDIAN_LENGTH = 250
PADDED_ROWS = 200_000


def made(name: str, params: dict[str, Any]) -> Order:
    """Returns an order, bound to a seed."""
    order: Order = construct(find(ORDER, name), params, {})
    order.bind(name, 1)
    return order


def context(batch: int = 8) -> UpdateContext:
    """Returns an update in the middle of a run."""
    return UpdateContext(3, 10, 30, 100, 1e-3, None, batch)


def kilobytes(key: str) -> int:
    """Returns a number of the process from Linux: ``VmRSS``, what it holds, ``VmHWM``, the most that it held."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise LookupError(key)


def measured(do: Callable[[], Any]) -> tuple[float, float, Any]:
    """Returns the seconds that ``do`` takes, its peak of memory in MB, and what it returns."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    before, started = kilobytes("VmRSS"), time.perf_counter()
    answer = do()
    seconds = time.perf_counter() - started
    return seconds, (kilobytes("VmHWM") - before) * 1024 / 1e6, answer


def timed(rows: int, repeats: int, orders: list[str], kind: str) -> list[str]:
    """Returns the lines of the first table."""
    generator = np.random.default_rng(0)
    scores = np.empty(rows)
    for start in range(0, rows, 1 << 20):
        part = generator.standard_normal(min(1 << 20, rows - start))
        scores[start : start + len(part)] = part.astype(kind)
    walked: dict[str, Callable[[], Any]] = {"numpy.argsort": lambda: np.argsort(scores, kind="stable")}
    for told in orders:
        order = made(*WALKED[told])
        walked[told] = lambda order=order: order.arrange(scores, context=context())  # type: ignore[misc]
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(repeats):
        for told, do in walked.items():
            seconds, peak, answer = measured(do)
            found.setdefault(told, []).append((seconds, peak))
        seconds, peak, _ = measured(lambda answer=answer: checked_permutation(answer, rows, "the benchmark"))
        found.setdefault("check of an answer", []).append((seconds, peak))
        del answer
    medians = {told: [statistics.median(each) for each in zip(*runs, strict=True)] for told, runs in found.items()}
    bare = medians["numpy.argsort"]
    return [
        f"| {told} | {seconds:.2f} | {peak:.0f} | {seconds / bare[0]:.2f} | {peak / max(bare[1], 1):.2f} |"
        for told, (seconds, peak) in medians.items()
    ]


def padding(order: np.ndarray, lengths: np.ndarray, batch: int) -> float:
    """Returns the tokens of padding for each token of a row, where batches are padded to their longest row."""
    batches = lengths[order][: len(order) // batch * batch].reshape(-1, batch)
    return float((batches.max(axis=1, keepdims=True) - batches).sum() / batches.sum())


def padded(rows: int) -> list[str]:
    """Returns the lines of the second table."""
    spread = np.random.default_rng(0).normal(np.log(MEDIAN_LENGTH), SPREAD, rows)
    lengths = np.exp(spread).round() + 1
    lines = []
    for batch in (4, 8, 32):
        random = padding(made("shuffle", {}).arrange(lengths, context=context(batch)), lengths, batch)
        cells = [f"{random:.3f}"]
        for window in (64, 256, 1024, 4096):
            order = made("length", {"window": window}).arrange(lengths, context=context(batch))
            found = padding(order, lengths, batch)
            cells.append(f"{found:.3f} ({found / random:.3f})")
        lines.append(f"| {batch} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=at_least(1), default=10_000_000)
    parser.add_argument("--repeats", type=at_least(1), default=3)
    parser.add_argument("--only", metavar="ORDERS", help="those to walk, separated by ;")
    parser.add_argument("--scores", choices=("float64", "float32"), default="float64", help="default: float64")
    given = parser.parse_args()
    orders = chosen(parser, given.only, WALKED)
    quieten(1)
    print(f"{machine('cpu')}, numpy {np.__version__}; {given.rows} rows, {given.scores}, {given.repeats} repetitions")
    print("| order | s | peak, MB | time, to argsort | memory, to argsort |")
    print("| --- | --- | --- | --- | --- |")
    print("\n".join(timed(given.rows, given.repeats, orders, given.scores)), flush=True)
    print(f"\n{PADDED_ROWS} lengths, log-normal: median {MEDIAN_LENGTH}, spread {SPREAD}")
    print("| batch | random rows | window 64 | window 256 | window 1024 | window 4096 |")
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(padded(PADDED_ROWS)), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
