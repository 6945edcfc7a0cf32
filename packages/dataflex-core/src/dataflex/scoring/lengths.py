"""How many tokens each row has, without reading the tokens where the dataset allows it.

Scoring plans its batches from the lengths. Reading 100k rows into Python lists for that would cost as much as a small
model's forward pass; an Arrow table has the lengths in its offsets.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import datasets
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, Subset

from dataflex.data.rows import MixedSources, PlannedRows


@runtime_checkable
class KnowsRowLengths(Protocol):
    """A dataset that has its rows' lengths at hand."""

    def row_lengths(self) -> NDArray[np.int64]:
        """Returns the number of tokens of each row: (N,) int64."""


def row_lengths(dataset: Any) -> NDArray[np.int64]:
    """Returns ``len(row["input_ids"])`` of every row: (N,) int64. Makes no collective call.

    Takes no row out of a Hugging Face dataset (also a selected, shuffled or concatenated one), nor of a dataset with a
    method ``row_lengths()``; looks through ``Subset``, ``ConcatDataset`` and dataflex's own views; reads row by row
    otherwise.
    """
    match dataset:
        case KnowsRowLengths():
            return np.asarray(dataset.row_lengths(), dtype=np.int64)
        case datasets.Dataset() if _is_stored_list(dataset):
            return _arrow_lengths(dataset)
        case Subset():
            return row_lengths(dataset.dataset)[np.asarray(dataset.indices, dtype=np.int64)]
        case PlannedRows():
            return row_lengths(dataset.dataset)[dataset.rows]
        case ConcatDataset():
            return np.concatenate([row_lengths(part) for part in dataset.datasets])
        case MixedSources():
            return np.concatenate([row_lengths(source) for source in dataset.sources])
    return np.fromiter((len(dataset[i]["input_ids"]) for i in range(len(dataset))), dtype=np.int64, count=len(dataset))


def _is_stored_list(dataset: datasets.Dataset) -> bool:
    """Whether ``input_ids`` is a column of lists on disk, not one that a transform makes when a row is read."""
    if dataset.format["type"] == "custom" or "input_ids" not in dataset.column_names:
        return False
    kind = dataset.data.column("input_ids").type
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _arrow_lengths(dataset: datasets.Dataset) -> NDArray[np.int64]:
    chunks = dataset.data.column("input_ids").chunks
    parts = [pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False) for chunk in chunks]
    lengths = np.concatenate([np.empty(0, dtype=np.int64), *parts]).astype(np.int64)
    if dataset._indices is None:  # the rows of select(), shuffle(), sort() and train_test_split()
        return lengths
    chosen: NDArray[np.uint64] = dataset._indices.column(0).to_numpy()
    return lengths[chosen]
