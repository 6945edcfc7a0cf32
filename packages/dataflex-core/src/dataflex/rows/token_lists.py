"""A list of numbers for each row of a dataset, one number for each of its tokens, read by row number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.rows.columns import column_chunks
from dataflex.rows.split_sources import SplitSources

_CHUNK = 1024  # rows at a time


class TokenLists:
    """The lists of one dataset, or of several one after the other. They stay on disk where the dataset is.

    Args:
        parts: The datasets; N rows together.
        column: The column of lists.
        order: (N,) which row of these each row number stands for; None where they are the same.
    """

    def __init__(self, parts: Sequence[Any], column: str, order: NDArray[np.int64] | None = None) -> None:
        self._parts, self._column, self._order = parts, column, order
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def of(self, rows_X: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Returns the lists of some rows, each (its numbers,); empty where a row has none.

        Args:
            rows_X: (X,) row numbers.
        """
        if self._order is not None:
            rows_X = self._order[rows_X]
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
        if self._order is not None:
            for start in range(0, len(self), _CHUNK):
                yield self.of(np.arange(start, min(start + _CHUNK, len(self))))
            return
        for part in self._parts:
            yield from column_chunks(part, self._column, range(len(part)))

    def in_order(self, order: NDArray[np.int64]) -> TokenLists:
        """Returns these lists by other row numbers: (N,) the row that each stands for."""
        return TokenLists(self._parts, self._column, order if self._order is None else self._order[order])


def by_rows_of(dataset: Any, columns: Mapping[str, TokenLists]) -> dict[str, TokenLists]:
    """Returns lists that are in the order in which rows were given, by the row numbers of a train dataset."""
    if not isinstance(dataset, SplitSources):
        return dict(columns)
    return {name: lists.in_order(dataset.given) for name, lists in columns.items()}
