"""A column of numbers for the rows of the train dataset, wherever it is now: in the dataset, or kept from before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from dataflex.core.errors import ConfigError, listed, nearest
from dataflex.rows.columns import column_chunks, number_column
from dataflex.rows.split_sources import by_row_number
from dataflex.rows.views import MixedSources, fetch


class ScoreColumns:
    """The columns that rows can be scored by.

    Args:
        dataset: The train dataset as it is trained on, N rows.
        kept: Column -> (N,) numbers that were kept when its rows were made; None for none.
        before: The train dataset that the user gave, or a mapping of several, where preparing it may have removed
            columns; None where it was not prepared.
        joins: Whether preparing it put several rows into one.
    """

    def __init__(
        self,
        dataset: Any,
        kept: Mapping[str, NDArray[np.float64]] | None = None,
        before: Any = None,
        joins: bool = False,
    ) -> None:
        self._dataset, self._kept, self._joins = dataset, kept or {}, joins
        self._before = MixedSources(before) if isinstance(before, Mapping) else before

    def read(self, column: str) -> NDArray[np.float64]:
        """Returns a column: (N,) float64, NaN for a row without a value. Makes no collective call.

        Raises:
            ConfigError: There is no such column, it holds something else than numbers, or rows are no longer those
                that had it.
        """
        if column in self._kept:
            return self._by_row_number(np.asarray(self._kept[column], dtype=np.float64))
        found = _numbers(self._dataset, column)
        if found is not None:
            return found
        earlier = None if self._before is None else _numbers(self._before, column)
        if earlier is None:
            names = column_names(self._dataset if self._before is None else self._before)
            way_out = nearest(column, names) or "name one that is there, or give the scores as file:PATH"
            raise ConfigError(
                f"column:{column}: the train dataset has no column {column!r} but {listed(names)} -> {way_out}"
            )
        if self._joins or len(earlier) != len(self._dataset):
            what = "rows are packed" if self._joins else f"preparing {len(earlier)} rows left {len(self._dataset)}"
            raise ConfigError(
                f"column:{column}: {what}, so a value is not that of one row -> set packing: false, or give the "
                "scores as file:PATH"
            )
        return earlier if isinstance(self._before, MixedSources) else self._by_row_number(earlier)

    def _by_row_number(self, values_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns numbers of rows in the order that they were given in, in the order of their sources."""
        return by_row_number(self._dataset, values_N)


def column_names(dataset: Any) -> list[str]:
    """Returns the columns of a dataset; of one whose rows are made when they are read, those of the first row."""
    if isinstance(dataset, datasets.Dataset):
        return list(dataset.column_names)
    return list(fetch(dataset, [0])[0]) if len(dataset) else []


def first_other(dataset: Any, column: str) -> tuple[int, Any] | None:
    """Returns the first row whose value in a column is no number, and the value; None where all are numbers or null."""
    row = 0
    for chunk in column_chunks(dataset, column, range(len(dataset))):
        for value in chunk:
            if value.size and (value.size > 1 or value.dtype.kind not in "fiu"):
                return row, value.tolist()
            row += 1
    return None


def refuse_other(dataset: Any, column: str, of: str = "the train dataset") -> None:
    """Refuses a column that holds something else than numbers.

    Args:
        dataset: A dataset with a length.
        column: The column.
        of: Whose rows these are, for the message.

    Raises:
        ConfigError: It names the first such row, and its value.
    """
    other = first_other(dataset, column)
    if other is not None:
        raise ConfigError(
            f"column:{column}: row {other[0]} of {of} has {other[1]!r:.80}, which is no number -> give each row a "
            "number, or null for none"
        )


def _numbers(dataset: Any, column: str) -> NDArray[np.float64] | None:
    try:
        return number_column(dataset, column)
    except (ValueError, TypeError):
        refuse_other(dataset, column)
        raise
