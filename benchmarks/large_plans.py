"""Passes, arranged passes and filters over many rows: time and memory of what the planner does at an update.

    python -m benchmarks.large_plans [--rows 100000000] [--batch 4096] [--repeats 5]

Only row numbers and scores: no rows, no model. Scores are drawn from a normal distribution, 64 bits, the harder case.
Seconds are medians of repetitions, but for what is done once; the peak is that of the process (``VmHWM`` of Linux)
above what it held before, so scores and the plan so far are not in it. "held" is what stays.

An order over the run with scores that never change arranges a pass once, and an update then takes the next rows; the
same with a pool of half of the rows, which another filter changes at each update; rows without replacement from such a
pool; and a filter's answer.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from dataflex.core.context import UpdateContext
from dataflex.core.kinds import ORDER
from dataflex.discovery.component_classes import find
from dataflex.discovery.construct import construct
from dataflex.planning.ordering import ArrangedPasses
from dataflex.planning.passes import Passes
from dataflex.planning.pool import Pool
from dataflex.run.state import load_state, save_state

from benchmarks.common import at_least, machine, quieten
from benchmarks.ordering import kilobytes, measured


def line(what: str, do: Callable[[], Any], repeats: int = 1) -> Any:
    """Prints seconds and memory of a part of an update, and returns what it gave last."""
    held = kilobytes("VmRSS")
    found = [measured(do) for _ in range(repeats)]
    seconds, peak = statistics.median(each[0] for each in found), max(each[1] for each in found)
    stays = max(0, kilobytes("VmRSS") - held) * 1024 / 1e6
    print(f"| {what} | {seconds:.3f} | {peak:.0f} | {stays:.0f} |", flush=True)
    return found[-1][2]


def saved(state: dict[str, Any]) -> None:
    """Prints what writing and reading a state takes, and its size."""
    with tempfile.TemporaryDirectory() as folder:
        line("- state written", lambda: save_state(folder, {"identity": {}, "pass": state}))
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
        line(f"- state of {size:.1f} MB read", lambda: load_state(folder))


def arranged(what: str, rows: int, batch: int, repeats: int, masks: list[Any]) -> None:
    """Prints the lines of an order over the run, whose pool is another one at each update."""
    order: Any = construct(find(ORDER, "saw"), {}, {})
    order.bind("saw", 1)
    values = np.random.default_rng(0).standard_normal(rows)
    updates = itertools.count()

    def scores(asked: Any) -> Any:
        return values if asked is None else values[asked]

    def take(passes: ArrangedPasses) -> Any:
        number = next(updates)
        context = UpdateContext(number, 10**6, number, 10**6, 1e-3, None)
        return passes.take(batch, masks[number % len(masks)], context, scores, "the benchmark", decides=True)

    passes = ArrangedPasses(order, 0, rows, changes=False)
    line(f"{what}: arranged, first update", lambda: take(passes))
    line("- another update", lambda: take(passes), repeats)
    state = line("- state", passes.state_dict)
    saved(state)
    resumed = ArrangedPasses(order, 0, rows, changes=False)
    resumed.load_state_dict(state)
    line("- first update of a resumed run", lambda: take(resumed))


def pooled(rows: int, batch: int, repeats: int, pools: list[Any]) -> None:
    """Prints the lines of a filter and of rows without replacement in its pool."""
    pool = Pool(rows, 1)
    kept = np.random.default_rng(1).permutation(rows)[: rows // 2]
    line("a filter keeps half", lambda: pool.keep(0, kept, "the benchmark"), repeats)
    saved(line("- state", pool.state_dict))
    for share, mask in [("half", pools[0]), ("a thousandth", np.arange(rows) % 1000 == 0)]:
        take = partial(Passes(rows, 1, "benchmark").take, batch, mask)
        line(f"rows without replacement, pool of {share}", take, repeats)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=at_least(1000), default=100_000_000)
    parser.add_argument("--batch", type=at_least(1), default=4096, help="rows that an update asks for")
    parser.add_argument("--repeats", type=at_least(1), default=5)
    given = parser.parse_args()
    if given.batch > given.rows // 1000:
        parser.error(f"argument --batch: found {given.batch}, allowed: at most a thousandth of --rows {given.rows}")
    quieten(1)
    print(f"{machine('cpu')}, NumPy {np.__version__}; {given.rows} rows, {given.batch} an update\n")
    print("| | s | peak, MB | held, MB |\n| --- | --- | --- | --- |")
    pools = [np.random.default_rng(seed).integers(0, 2, given.rows, dtype=np.int8).view(np.bool_) for seed in (2, 3)]
    arranged("saw over the run", given.rows, given.batch, given.repeats, [None])
    arranged("the same in a pool that changes", given.rows, given.batch, given.repeats, pools)
    pooled(given.rows, given.batch, given.repeats, pools)


if __name__ == "__main__":
    main()
