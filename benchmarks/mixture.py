"""Planning a segment of a mixture over sources of 100 million rows: time, and memory beyond what was there before.

    python -m benchmarks.mixture [--rows 100000000] [--segment 1000000]

A segment of a million rows is 1000 steps of 1000 rows. Whatever the size of the sources, what is kept of each is one
position, and what is computed is the rows of the segment.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc

import numpy as np
import torch
from dataflex.planning.mixture import MixtureManager

from benchmarks.common import at_least, machine


def planned(rows: int, segment: int) -> tuple[float, float, int]:
    """Returns the seconds of one plan in the middle of a run, its peak of memory in MB, and rows of the tiny source."""
    sizes = [rows // 2, rows - rows // 2 - 10, 10]
    mixture = MixtureManager(["half", "rest", "tiny"], sizes, [0.5, 0.4999, 0.0001], seed=1)
    mixture.plan(segment)
    started = time.perf_counter()
    found = mixture.plan(segment)
    seconds = time.perf_counter() - started
    tracemalloc.start()
    mixture.plan(segment)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return seconds, peak, int(np.count_nonzero(found >= rows - 10))


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=at_least(10_000), default=100_000_000)
    parser.add_argument("--segment", type=at_least(1), default=1_000_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(machine("cpu"))
    print("| rows of the sources | rows of the segment | seconds | peak MB | rows of a source of 10 |")
    print("| --- | --- | --- | --- | --- |")
    for rows in (given.rows // 100, given.rows):
        seconds, peak, tiny = planned(rows, given.segment)
        print(f"| {rows} | {given.segment} | {seconds:.2f} | {peak:.0f} | {tiny} |")


if __name__ == "__main__":
    main()
