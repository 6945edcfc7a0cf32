"""Row numbers as places in arrays: those of a dataset are their own places; those of streams are far apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST = 2**31
"""A row number from here on is of a stream: no dataset of one machine has as many rows."""
_TOGETHER = 4_000_000


@dataclass(frozen=True)
class RowPlaces:
    """Row number <-> place.

    Attributes:
        count: How many places there are.
        whole: Whether every row of the dataset has one; else only rows that were planned do.
        numbers: (P,) ascending row number of each place; None where they are 0 to ``count`` - 1.
    """

    count: int
    whole: bool
    numbers: NDArray[np.int64] | None = None

    def places(self, rows_R: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns (R,) the places of rows."""
        if self.numbers is None:
            return rows_R
        found: NDArray[np.int64] = np.searchsorted(self.numbers, rows_R).astype(np.int64)
        return found

    def rows(self, places_P: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns (P,) the row numbers of places."""
        return places_P if self.numbers is None else self.numbers[places_P]

    def place(self, row: int) -> int | None:
        """Returns the place of one row; None where it has none."""
        if self.numbers is None:
            return row if 0 <= row < self.count else None
        found = int(np.searchsorted(self.numbers, row))
        return found if found < self.count and self.numbers[found] == row else None


def row_places(rows: int | None, planned: Iterator[NDArray[np.int64]]) -> RowPlaces:
    """Returns the places of a run's rows.

    Args:
        rows: How many the dataset has; None for streams, or where that is not known.
        planned: The row numbers of the files. Read only where ``rows`` is None or a file names a row beyond it.
    """
    if rows is not None:
        return RowPlaces(rows, True)
    parts: list[NDArray[np.int64]] = []
    for found in planned:
        parts.append(np.unique(found))
        if sum(map(len, parts)) > _TOGETHER:
            parts = [np.unique(np.concatenate(parts))]
    numbers = np.unique(np.concatenate(parts)) if parts else np.empty(0, dtype=np.int64)
    return RowPlaces(len(numbers), False, numbers)
