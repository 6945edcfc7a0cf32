"""Labels of rows in a column of a dataset: texts, whole numbers, or classes of ``datasets.ClassLabel``."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from dataflex.core.errors import ConfigError, listed, nearest
from dataflex.core.source_labels import SourceLabels, coded, labels_of_values
from dataflex.rows.arrow import column_type, tables, whole
from dataflex.rows.score_columns import column_names
from dataflex.rows.views import fetch

_READ = 1024  # rows at a time


def labels_of_column(dataset: Any, column: str) -> SourceLabels:
    """Returns the labels in a column of a dataset.

    Raises:
        ConfigError: It has no such column, or what the column holds is no label: see
            :func:`~dataflex.core.source_labels.coded`.
    """
    key = f"column:{column}"
    names = column_names(dataset)
    if column not in names:
        raise ConfigError(
            f"mixture_by: {key}: the train dataset has no column {column!r} but {listed(names)} -> "
            f"{nearest(column, names) or 'name one that is there, or give the labels as file:PATH'}"
        )
    if isinstance(dataset, datasets.Dataset):
        values, codes_N = coded_column(dataset, column)
        return coded(values, codes_N, key, "the train dataset")
    found: list[Any] = []
    for start in range(0, len(dataset), _READ):
        rows = fetch(dataset, np.arange(start, min(start + _READ, len(dataset))))
        found += [row.get(column) for row in rows]
    return labels_of_values(found, key, "the train dataset")


def coded_column(dataset: datasets.Dataset, column: str) -> tuple[list[Any], NDArray[np.int64]]:
    """Returns the different values of a stored column, and which of them each row has: (N,), -1 for null."""
    places: dict[Any, int] = {}
    codes: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
    values: list[Any] = []
    named = column_type(dataset, column)
    feature = dataset.features[column]
    for table in tables(dataset, [column]):
        array = whole(table.column(column))
        if not _is_hashable(named):
            return [array[0].as_py()] if len(array) else [], np.zeros(len(dataset), dtype=np.int64)
        encoded = array.dictionary_encode()
        own = encoded.dictionary.to_pylist()
        if isinstance(feature, datasets.ClassLabel):  # of which -1, as of unlabelled rows, is no class
            own = [None if value is None or value < 0 else feature.int2str(value) for value in own]
        placed = [-1 if value is None else _place(places, values, value) for value in own]
        numbers = np.array([*placed, -1], dtype=np.int64)
        indices = encoded.indices.fill_null(len(own)).to_numpy(zero_copy_only=False).astype(np.int64)
        codes.append(numbers[indices])
    return values, np.concatenate(codes)


def _place(places: dict[Any, int], values: list[Any], value: Any) -> int:
    key = (type(value).__name__, value)
    if key not in places:
        places[key] = len(values)
        values.append(value)
    return places[key]


def _is_hashable(kind: Any) -> bool:
    """Whether a value is a text or a number; a list, say, is no label."""
    return not any(word in str(kind) for word in ("list", "struct", "map", "extension"))
