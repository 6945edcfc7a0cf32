"""Reading one column of a tokenised dataset, without the others where the dataset allows it."""

from __future__ import annotations

from collections.abc import Iterator
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
    stored = (
        isinstance(dataset, datasets.Dataset)
        and dataset.format["type"] != "custom"  # a transform makes rows when they are read
        and column in dataset.column_names
    )
    view = dataset.with_format("arrow", columns=[column]) if stored else None
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        if view is not None:
            values = view[part].column(column).to_numpy()
        else:
            values = [row.get(column) for row in fetch(dataset, part)]
        yield [np.asarray(() if value is None else value) for value in values]


def labelled_rows(dataset: Any) -> NDArray[np.int64]:
    """Returns the rows that something can be learnt from, in row order: (n,) of N.

    A row without tokens is left out, and so is one whose labels are all -100; the label of the first token is not
    predicted and does not count. A row without ``labels`` stays: the collator makes them.
    """
    every = np.flatnonzero(row_lengths(dataset) > 0)
    if isinstance(dataset, datasets.Dataset) and "labels" not in dataset.column_names:
        return every
    chunks = column_chunks(dataset, "labels", every)
    kept = [not labels.size or bool((labels[1:] != IGNORED).any()) for chunk in chunks for labels in chunk]
    return every[np.asarray(kept, dtype=np.bool_)]
