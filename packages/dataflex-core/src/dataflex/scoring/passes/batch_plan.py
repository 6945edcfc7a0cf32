"""Which rows are scored together.

Rows are sorted by length and cut into batches of at most ``token_budget`` tokens, padding included, so hardly any
padding is computed and each forward does about the same work. The longest come first: what does not fit into memory
shows at once, and the time left is not underestimated.

The batches are planned once and dealt out to the ranks, one round after the other. So a row is scored in the same
company, and gets the same loss, whatever the number of ranks; the price is at most one batch of waiting in the last
round. Rejected: a plan per rank, which balances the last round better and changes the last bits of the losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """Rows that go through the model together.

    Attributes:
        rows: (B,) row numbers, longest first.
        repeated: Whether another rank has these rows too, and they are here only so that every rank makes the same
            number of forwards. The results of a repeated batch are dropped.
    """

    rows: NDArray[np.int64]
    repeated: bool = False


def plan_batches(lengths: NDArray[np.int64], token_budget: int, max_rows: int | None = None) -> list[NDArray[np.int64]]:
    """Returns batches that hold every row once: a list of (B,) row numbers, longest first, equal ones in row order.

    Args:
        lengths: (N,) tokens of each row.
        token_budget: Most tokens of a batch, counted as rows times the longest of them. A longer row is a batch alone.
        max_rows: Most rows of a batch; None for no such limit.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        count = max(1, min(token_budget // longest, max_rows or token_budget))
        batches.append(order[start : start + count])
        start += count
    return batches


def shard_batches(batches: list[NDArray[np.int64]], rank: int, world_size: int) -> list[Batch]:
    """Returns the batches of one rank: ``rank``, ``rank + world_size``, ... The same number on every rank.

    Sharded engines gather weights in every forward, so a rank with one forward less would leave the others waiting. A
    rank that has nothing left in the last round repeats the last batch.

    Args:
        batches: What :func:`plan_batches` returned, the same on every rank.
        rank: This rank, in [0, world_size).
        world_size: Number of ranks.
    """
    last = len(batches) - 1
    rounds = range(0, len(batches), world_size)
    return [Batch(batches[min(first + rank, last)], repeated=first + rank > last) for first in rounds]
