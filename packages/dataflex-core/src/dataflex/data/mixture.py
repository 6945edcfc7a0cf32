"""The mixture: which source each row of the next stretch comes from.

The train dataset is the concatenation of the sources, each tokenised once; a mixture is a plan of row numbers into it.
Counts per source are the planned share of the segment by largest remainder. What rounding took from a source is owed to
it and decides the next ties, so a source whose share is below one row per segment is still seen. Inside a source, rows
come without replacement, reshuffled each time it is exhausted; the state of that is one position per source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dataflex.core.component import seeded
from dataflex.data.order import RowOrder


def largest_remainder(shares_K: NDArray[np.float64], total: int, owed_K: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns how many of ``total`` rows each source gets: floor of its share, or one more.

    Args:
        shares_K: (K,) shares that sum to 1.
        total: Rows to divide.
        owed_K: (K,) rows that rounding has taken from each source so far; larger goes first.

    Returns:
        (K,) counts that sum to ``total``; a source with share 0 gets none.
    """
    exact_K = shares_K * total
    counts_K = np.floor(exact_K).astype(np.int64)
    rank_K = np.where(shares_K > 0, exact_K - counts_K + owed_K, -np.inf)
    counts_K[np.argsort(-rank_K, kind="stable")[: total - int(counts_K.sum())]] += 1
    return counts_K


class MixtureManager:
    """The sources of a mixed run and their current proportions.

    Args:
        names: (K) names of the sources.
        sizes: (K,) rows of each.
        proportions: (K,) initial shares of rows; scaled to sum 1.
        seed: The run's seed.

    Attributes:
        names: (K) names, in the order of the user's ``dataset`` key.
        sizes: (K,) int64 rows of each source.
        proportions: (K,) float64 current shares, sum 1.
    """

    def __init__(self, names: Sequence[str], sizes: ArrayLike, proportions: ArrayLike, seed: int) -> None:
        self.names = tuple(names)
        self.sizes: NDArray[np.int64] = np.asarray(sizes, dtype=np.int64)
        self.seed = seed
        self._offsets = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self._cursors = np.zeros(len(self.names), dtype=np.int64)
        self._owed = np.zeros(len(self.names), dtype=np.float64)
        self._planned = 0
        self._orders = [RowOrder(int(n), seed, "domain", name) for n, name in zip(self.sizes, self.names, strict=True)]
        self.set_proportions(proportions)

    def set_proportions(self, proportions: ArrayLike) -> None:
        """Sets the shares of the segments planned from now on.

        Args:
            proportions: (K,) finite, non-negative, not all zero; scaled to sum 1.
        """
        shares_K: NDArray[np.float64] = np.array(proportions, dtype=np.float64)
        if shares_K.shape != (len(self.names),):
            raise ValueError(f"expected one share for each of {', '.join(self.names)}; got shape {shares_K.shape}")
        if not np.isfinite(shares_K).all() or (shares_K < 0).any() or shares_K.sum() <= 0:
            raise ValueError(f"shares must be finite, non-negative and not all zero; got {shares_K.tolist()}")
        self.proportions = shares_K / shares_K.sum()

    def plan(self, num_rows: int) -> NDArray[np.int64]:
        """Returns the next ``num_rows`` rows of the train dataset in the order of training, and moves the positions."""
        counts_K = largest_remainder(self.proportions, num_rows, self._owed)
        parts = [
            offset + order.take(int(cursor), int(count))
            for order, offset, cursor, count in zip(self._orders, self._offsets, self._cursors, counts_K, strict=True)
        ]
        rows = np.concatenate(parts)
        np.random.Generator(np.random.Philox(key=seeded(self.seed, "mixture", self._planned))).shuffle(rows)
        self._owed += self.proportions * num_rows - counts_K
        self._cursors += counts_K
        self._planned += 1
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Returns what continues the mixture: shares, and each source's position."""
        return {
            "names": list(self.names),
            "proportions": self.proportions.copy(),
            "cursors": self._cursors.copy(),
            "owed": self._owed.copy(),
            "planned": self._planned,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.proportions = np.array(state["proportions"], dtype=np.float64)
        self._cursors = np.array(state["cursors"], dtype=np.int64)
        self._owed = np.array(state["owed"], dtype=np.float64)
        self._planned = int(state["planned"])


def initial_proportions(rule: str, given: Sequence[float] | None, sizes: ArrayLike) -> NDArray[np.float64]:
    """Returns the (K,) shares that ``mixture_sample_rule`` starts from, sum 1.

    ``mixture``: ``init_mixture_proportions``, or the sources' sizes where that is absent; ``stratified``: the sizes;
    ``uniform``: equal shares.
    """
    sizes_K: NDArray[np.float64] = np.asarray(sizes, dtype=np.float64)
    if rule == "mixture" and given is not None:
        shares_K: NDArray[np.float64] = np.asarray(given, dtype=np.float64)
    elif rule == "uniform":
        shares_K = np.ones_like(sizes_K)
    else:
        shares_K = sizes_K
    scaled_K: NDArray[np.float64] = shares_K / shares_K.sum()
    return scaled_K
