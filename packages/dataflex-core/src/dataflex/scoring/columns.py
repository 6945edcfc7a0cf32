"""Reading one column of a tokenised dataset, without the others where the dataset allows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from dataflex.data.rows import fetch
from dataflex.scoring.label_logits import IGNORED
from dataflex.scoring.lengths import row_lengths

_CHUNK = 1024  # rows read at a time


def column_chunks(dataset: Any, column: str, rows: NDArray[np.int64]) -> Iterator[list[NDArray[Any]]]:
    """Yields the values of a column for the rows, a thousand at a time: a list of arrays, one per row.

    A row without a value gives an empty array.
    """
    for chunk in columns_chunks(dataset, (column,), rows):
        yield [values for (values,) in chunk]


def columns_chunks(
    dataset: Any, columns: Sequence[str], rows: NDArray[np.int64]
) -> Iterator[list[tuple[NDArray[Any], ...]]]:
    """Yields the values of several columns for the rows, a thousand at a time: a tuple of arrays for each row.

    Each row is read once, whatever is asked of it. A row without a value gives an empty array.
    """
    stored = _is_stored(dataset)
    present = [column for column in columns if column in dataset.column_names] if stored else []
    view = dataset.with_format("arrow", columns=present) if present else None
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        if view is not None:
            table = view[part]
            values = [
                table.column(column).to_numpy() if column in present else [None] * len(part) for column in columns
            ]
        else:
            found = [] if stored else fetch(dataset, part)
            values = [[row.get(column) for row in found] or [None] * len(part) for column in columns]
        yield [tuple(np.asarray(() if value is None else value) for value in own) for own in zip(*values, strict=True)]


def labelled_rows(dataset: Any) -> NDArray[np.int64]:
    """Returns the rows that something can be learnt from, in row order: (n,) of N.

    A row without tokens is left out, and so is one whose labels are all -100; the label of the first token is not
    predicted and does not count. A row without ``labels`` stays: the collator makes them. A dataset whose rows are made
    when they are read makes each of them once.
    """
    if not _is_stored(dataset):
        chunks = columns_chunks(dataset, ("input_ids", "labels"), np.arange(len(dataset), dtype=np.int64))
        found = [ids.size > 0 and _is_learnt(labels) for chunk in chunks for ids, labels in chunk]
        return np.flatnonzero(np.asarray(found, dtype=np.bool_))
    every = np.flatnonzero(row_lengths(dataset) > 0)
    if "labels" not in dataset.column_names:
        return every
    kept = [_is_learnt(labels) for chunk in column_chunks(dataset, "labels", every) for labels in chunk]
    return every[np.asarray(kept, dtype=np.bool_)]


def _is_stored(dataset: Any) -> bool:
    """Whether a column can be read without the others; a transform makes rows when they are read."""
    return isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom"


def _is_learnt(labels: NDArray[Any]) -> bool:
    return not labels.size or bool((labels[1:] != IGNORED).any())
