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

from dataflex.rows.arrow import column_type, is_list, is_stored
from dataflex.rows.token_columns import TEXT, token_columns
from dataflex.rows.views import MixedSources, PlannedRows
from dataflex.utils.progress import Progress

_SUMMED = 10**7  # rows whose lengths are added up for a total
_FEW = 1 / 16  # share of the rows up to which their lengths are looked up one by one


@runtime_checkable
class KnowsRowLengths(Protocol):
    """A dataset that has its rows' lengths at hand."""

    def row_lengths(self) -> NDArray[np.int64]:
        """Returns the number of tokens of each row: (N,) int64."""


def row_lengths(dataset: Any, rows: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Returns how many tokens every row has, or some rows have: (N,) int64. Makes no collective call.

    That is ``len(row["input_ids"])``; of a pair of answers, the tokens of both, each with its prompt
    (:mod:`dataflex.rows.token_columns`).

    Takes no row out of a Hugging Face dataset (also a selected, shuffled or concatenated one), nor of a dataset with a
    method ``row_lengths()``; looks through ``Subset``, ``ConcatDataset`` and dataflex's own views; reads row by row
    otherwise.

    Args:
        dataset: A dataset with a length.
        rows: (n,) row numbers; None for all. What the others take is not spent.
    """
    match dataset:
        case KnowsRowLengths():
            return _of(np.asarray(dataset.row_lengths(), dtype=np.int64), rows)
        case datasets.Dataset() if _is_stored_list(dataset):
            return _arrow_lengths(dataset, rows)
        case Subset():
            return row_lengths(dataset.dataset, _of(np.asarray(dataset.indices, dtype=np.int64), rows))
        case PlannedRows():
            return row_lengths(dataset.dataset, _of(dataset.rows, rows))
        case ConcatDataset():
            return _of(np.concatenate([row_lengths(part) for part in dataset.datasets]), rows)
        case MixedSources():
            return _of_sources(dataset, rows)
    wanted = range(len(dataset)) if rows is None else map(int, rows)
    size = len(dataset) if rows is None else len(rows)
    lengths = np.empty(size, dtype=np.int64)
    with Progress("reading the lengths of rows", size) as progress:
        for place, row in enumerate(wanted):
            lengths[place] = row_length(dataset[row])
            progress.done()
    return lengths


def row_length(row: Any) -> int:
    """Returns how many tokens a row has."""
    return sum(times * len(row[column]) for column, times in token_columns(row).items())


def lengths_at_hand(dataset: Any) -> bool:
    """Returns whether :func:`row_lengths` of a dataset takes no row out of it."""
    match dataset:
        case KnowsRowLengths():
            return True
        case datasets.Dataset():
            return _is_stored_list(dataset)
        case Subset() | PlannedRows():
            return lengths_at_hand(dataset.dataset)
        case ConcatDataset():
            return all(map(lengths_at_hand, dataset.datasets))
        case MixedSources():
            return all(map(lengths_at_hand, dataset.sources))
    return False


def token_total(dataset: Any) -> int | None:
    """Returns the tokens of all rows where they are at hand, and to add them up takes no noticeable time; else None.

    Of a dataset as it stands in its file they are the ends of its chunks; of another, at most ten million lengths.
    """
    if not lengths_at_hand(dataset):
        return None
    plain = isinstance(dataset, datasets.Dataset) and token_columns(dataset.column_names) is TEXT
    if plain and dataset._indices is None:
        return sum(map(_chunk_tokens, dataset.data.column("input_ids").chunks))
    return int(row_lengths(dataset).sum()) if len(dataset) <= _SUMMED else None


def _chunk_tokens(chunk: Any) -> int:
    if pa.types.is_fixed_size_list(chunk.type) or chunk.null_count:
        return int(_lengths(chunk).sum())
    return chunk.offsets[-1].as_py() - chunk.offsets[0].as_py() if len(chunk) else 0


def _of_sources(mixed: MixedSources, rows: NDArray[np.int64] | None) -> NDArray[np.int64]:
    if rows is None:
        return np.concatenate([row_lengths(source) for source in mixed.sources])
    lengths = np.empty(len(rows), dtype=np.int64)
    numbers = mixed.sources_of(rows)
    for number in np.unique(numbers):
        own = np.flatnonzero(numbers == number)
        lengths[own] = row_lengths(mixed.sources[number], rows[own] - mixed.offsets[number])
    return lengths


def _of(values_N: NDArray[np.int64], rows: NDArray[np.int64] | None) -> NDArray[np.int64]:
    return values_N if rows is None else values_N[rows]


def _is_stored_list(dataset: datasets.Dataset) -> bool:
    """Whether tokens are in columns of lists on disk, not in ones that a transform makes when a row is read."""
    return is_stored(dataset) and all(
        column in dataset.column_names and is_list(column_type(dataset, column))
        for column in token_columns(dataset.column_names)
    )


def _arrow_lengths(dataset: datasets.Dataset, rows: NDArray[np.int64] | None) -> NDArray[np.int64]:
    if dataset._indices is not None:  # the rows of select(), shuffle(), sort() and train_test_split()
        chosen = dataset._indices.column(0)
        rows = (chosen if rows is None else chosen.take(pa.array(rows))).to_numpy().astype(np.int64)
    columns = token_columns(dataset.column_names)
    return np.asarray(sum(times * _column_lengths(dataset, column, rows) for column, times in columns.items()))


def _column_lengths(dataset: datasets.Dataset, column: str, rows: NDArray[np.int64] | None) -> NDArray[np.int64]:
    chunks = [chunk for chunk in dataset.data.column(column).chunks if len(chunk)]
    starts = np.cumsum([0, *map(len, chunks)])
    if rows is None or len(rows) > _FEW * starts[-1]:
        return _of(np.concatenate([np.empty(0, dtype=np.int64), *map(_lengths, chunks)]).astype(np.int64), rows)
    if not len(rows):
        return np.empty(0, dtype=np.int64)
    order = np.argsort(rows, kind="stable")
    places, firsts = np.unique(np.searchsorted(starts, rows[order], side="right") - 1, return_index=True)
    lengths = np.empty(len(rows), dtype=np.int64)
    for place, own in zip(places, np.split(order, firsts[1:]), strict=True):
        lengths[own] = _lengths(chunks[place], rows[own] - starts[place])
    return lengths


def _lengths(lists: Any, rows: NDArray[np.int64] | None = None) -> NDArray[Any]:
    if rows is not None and not pa.types.is_fixed_size_list(lists.type) and not lists.null_count:
        offsets = lists.offsets.to_numpy()
        return np.asarray(offsets[rows + 1] - offsets[rows])
    found: NDArray[Any] = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return found if rows is None else found[rows]
