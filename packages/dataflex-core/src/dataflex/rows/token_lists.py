"""A list of numbers for each row of a dataset, one number for each of its tokens, read by row number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.rows.columns import column_chunks


class TokenLists:
    """The lists of one dataset, or of several one after the other. They stay on disk where the dataset is.

    Args:
        parts: The datasets; N rows together.
        column: The column of lists.
    """

    def __init__(self, parts: Sequence[Any], column: str) -> None:
        self._parts, self._column = parts, column
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def of(self, rows_X: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Returns the lists of some rows, each (its numbers,); empty where a row has none.

        Args:
            rows_X: (X,) row numbers.
        """
        found: list[NDArray[Any]] = [np.empty(0)] * len(rows_X)
        numbers_X = np.searchsorted(self._starts[1:], rows_X, side="right")
        for number in np.unique(numbers_X).tolist():
            places = np.flatnonzero(numbers_X == number)
            chunks = column_chunks(self._parts[number], self._column, rows_X[places] - self._starts[number])
            for place, values in zip(places.tolist(), (value for chunk in chunks for value in chunk), strict=True):
                found[place] = values
        return found

    def chunks(self) -> Iterator[list[NDArray[Any]]]:
        """Yields the lists of all rows in order, a thousand at a time."""
        for part in self._parts:
            yield from column_chunks(part, self._column, range(len(part)))
