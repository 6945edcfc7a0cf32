"""Which rows of a large dataset a person would look at: the most and least chosen, and those at the ends of the scores.

Letters: N rows of the train dataset, S rows of a segment.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

COUNTED = 5_000_000
"""Rows up to which it is counted how often each was chosen: 4 bytes each."""
_MOST, _LEAST, _NEVER, _ENDS = 16, 8, 8, 16  # 64 rows an update


class TimesChosen:
    """How often each row was chosen.

    Args:
        size: N; above :data:`COUNTED` nothing is counted.

    Attributes:
        times: (N,) or empty.
    """

    def __init__(self, size: int) -> None:
        self.times: NDArray[np.int32] = np.zeros(size if size <= COUNTED else 0, dtype=np.int32)

    def add(self, rows: NDArray[np.int64]) -> None:
        """Counts the rows of a segment: (S,)."""
        if len(self.times):
            distinct, counts = np.unique(rows[(rows >= 0) & (rows < len(self.times))], return_counts=True)
            self.times[distinct] += counts.astype(np.int32)

    def notable(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Returns the rows that were chosen most and least, and some that never were.

        Args:
            generator: Draws the latter.
        """
        chosen = np.flatnonzero(self.times)
        if not len(chosen):
            return np.empty(0, dtype=np.int64)
        times = self.times[chosen]
        drawn = np.sort(generator.integers(len(self.times), size=8 * _NEVER))
        never = np.unique(drawn[self.times[drawn] == 0])[:_NEVER]
        return np.concatenate([chosen[_last(times, _MOST)], chosen[_last(-times, _LEAST)], never])


def by_score(rows: NDArray[np.int64] | int, scores: NDArray[np.floating[Any]], count: int = _ENDS) -> NDArray[np.int64]:
    """Returns the rows with the highest and the lowest scores.

    Args:
        rows: (S,) the rows that the scores are of; or the first, where they follow each other.
        scores: (S,) scores; those that are not finite are left out.
        count: How many of each end.
    """
    places = np.flatnonzero(np.isfinite(scores))
    finite = scores[places]
    found = places[np.concatenate([_last(finite, count), _last(-finite, count)])]
    return np.asarray(found + rows if isinstance(rows, int) else rows[found])


def _last(values: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Returns where the highest values stand; of equal ones, the first."""
    if len(values) <= count:
        return np.arange(len(values), dtype=np.int64)
    least = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > least)
    return np.concatenate([above, np.flatnonzero(values == least)[: count - len(above)]])
