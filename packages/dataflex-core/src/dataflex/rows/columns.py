"""Reading some columns of a tokenised dataset, without the others where the dataset allows it.

What is asked of all rows of a stored dataset is asked of Arrow arrays (:mod:`dataflex.rows.arrow`), also through
views of it and through several sources as one; only rows that are made when they are read are read one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, Subset

from dataflex.rows.arrow import (
    any_after_first,
    column_type,
    is_list,
    is_number,
    is_stored,
    list_parts,
    numbers,
    tables,
    whole,
)
from dataflex.rows.token_columns import COLUMNS, TEXT, is_pair, parts_of_pair, token_columns
from dataflex.rows.views import MixedSources, PlannedRows, fetch
from dataflex.utils.progress import tracked

IGNORED = -100
"""The label of a token that nothing is learnt from."""
_CHUNK = 1024  # rows read at a time
Rows = NDArray[np.int64] | range
Tokens = NDArray[np.int64] | Mapping[str, NDArray[np.int64]]
"""The tokens of a row: (T,), or of a pair of answers, part by part."""


def column_chunks(dataset: Any, column: str, rows: Rows) -> Iterator[list[NDArray[Any]]]:
    """Yields the values of a column for the rows, a thousand at a time: a list of arrays, one per row.

    A row without a value gives an empty array.
    """
    for chunk in columns_chunks(dataset, (column,), rows):
        yield [values for (values,) in chunk]


def token_ids(dataset: Any, rows: NDArray[np.int64]) -> list[Tokens]:
    """Returns the tokens of some rows, without their other columns where the dataset is stored.

    A row without any gives an empty array; a pair of answers its parts, as
    :func:`~dataflex.rows.token_columns.parts_of_pair` has them.

    Args:
        dataset: A dataset with rows by number; several sources are asked one by one.
        rows: (n,) row numbers.
    """
    if not isinstance(dataset, MixedSources):
        return [_tokens_of(values) for chunk in columns_chunks(dataset, COLUMNS, rows) for values in chunk]
    found: list[Tokens] = [np.empty(0, dtype=np.int64)] * len(rows)
    numbers_n = dataset.sources_of(rows)
    for number in np.unique(numbers_n):
        places = np.flatnonzero(numbers_n == number)
        own = token_ids(dataset.sources[number], rows[places] - dataset.offsets[number])
        for place, ids in zip(places.tolist(), own, strict=True):
            found[place] = ids
    return found


def read_chunks(dataset: Any, rows: Rows) -> Iterator[list[NDArray[Any]]]:
    """Yields the tokens of each row as one text, a thousand at a time: a list of arrays, one per row.

    Of a pair of answers, the prompt and the chosen one.
    """
    for chunk in columns_chunks(dataset, COLUMNS, rows):
        yield [_read(_tokens_of(values)) for values in chunk]


def _read(tokens: Tokens) -> NDArray[Any]:
    return np.concatenate([tokens["prompt"], tokens["chosen"]]) if isinstance(tokens, Mapping) else tokens


def _tokens_of(values: Sequence[NDArray[Any]]) -> Tokens:
    tokens = {name: ids for name, ids in zip(COLUMNS, map(_whole_numbers, values), strict=True) if ids.size}
    wanted = token_columns(tokens)
    if is_pair(tokens):
        return parts_of_pair({name: tokens[name] for name in wanted})
    return np.concatenate([np.empty(0, dtype=np.int64), *(tokens[name] for name in wanted if name in tokens)])


def _whole_numbers(ids: NDArray[Any]) -> NDArray[Any]:
    return ids.ravel() if ids.dtype.kind in "iu" else np.empty(0, dtype=np.int64)


def columns_chunks(
    dataset: Any, columns: Sequence[str], rows: Rows, at_once: int = _CHUNK
) -> Iterator[list[tuple[NDArray[Any], ...]]]:
    """Yields the values of several columns for the rows, ``at_once`` at a time: a tuple of arrays for each row.

    Each row is read once, whatever is asked of it. A row without a value gives an empty array.
    """
    stored = is_stored(dataset)
    present = [column for column in columns if column in dataset.column_names] if stored else []
    view = dataset.with_format("arrow", columns=present) if present else None
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
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
    predicted and does not count. A pair of answers needs tokens of both. A row without ``labels`` stays: the collator
    makes them. A dataset whose rows are made when they are read makes each of them once.
    """
    parts = tracked(_learnable(dataset), "looking for rows with labels", len(dataset), size=len)
    return np.flatnonzero(np.concatenate([np.empty(0, dtype=np.bool_), *parts]))


def first_labelled_rows(dataset: Any, count: int) -> NDArray[np.int64]:
    """Returns the first ``count`` of :func:`labelled_rows`, all where there are fewer. Reads no more than it takes.

    Args:
        dataset: A dataset with a length.
        count: How many, at least 1.
    """
    found, start, size = [np.empty(0, dtype=np.int64)], 0, 0
    for learnable in _learnable(dataset, min(max(count, 16), _CHUNK)):
        found.append(start + np.flatnonzero(learnable))
        start += len(learnable)
        size += len(found[-1])
        if size >= count:
            break
    return np.concatenate(found)[:count]


def number_column(dataset: Any, column: str) -> NDArray[np.float64] | None:
    """Returns a column of numbers: (N,) float64, NaN for a row without one; None where no row has the column.

    Raises:
        ValueError: It holds something else than one number per row.
    """
    parts = list(tracked(_numbers(dataset, column), f"reading the column {column}", len(dataset), size=_rows_of))
    found = [part for part in parts if isinstance(part, np.ndarray)]
    if not found:
        return None
    whole = [part if isinstance(part, np.ndarray) else np.full(part, np.nan) for part in parts]
    return np.concatenate([np.empty(0), *whole])


def _rows_of(part: NDArray[np.float64] | int) -> int:
    return part if isinstance(part, int) else len(part)


def _learnable(dataset: Any, at_once: int = _CHUNK) -> Iterator[NDArray[np.bool_]]:
    """Yields which rows something can be learnt from, a stretch after the other.

    Args:
        dataset: A dataset with a length.
        at_once: Rows to read at a time where they are made when they are read.
    """
    for part, own in stored_parts(dataset):
        if _has_lists(part):
            columns = [column for column in ("input_ids", "labels") if column in part.column_names]
            yield from (_learnable_in(table) for table in tables(part, columns, own))
        else:
            every = range(len(part)) if own is None else own
            for chunk in columns_chunks(part, ("labels", *COLUMNS), every, at_once):
                yield np.array([_is_learnable(values) for values in chunk], dtype=np.bool_)


def _is_learnable(values: Sequence[NDArray[Any]]) -> bool:
    """Returns whether a row has tokens to learn from; of a pair, in each of its parts.

    Args:
        values: Its labels, and its columns of :data:`COLUMNS`.
    """
    labels, *tokens = values
    there = [name for name, ids in zip(COLUMNS, tokens, strict=True) if ids.size]
    if token_columns(there) is not TEXT:
        return True
    return "input_ids" in there and _is_learnt(labels)


def _learnable_in(table: Any) -> NDArray[np.bool_]:
    lengths_B, _ = list_parts(whole(table.column("input_ids")))
    if "labels" not in table.column_names:
        return lengths_B > 0
    labelled_B, labels = list_parts(whole(table.column("labels")))
    learnt_B = any_after_first(numbers(labels) != IGNORED, labelled_B) | (labelled_B == 0)
    return np.asarray((lengths_B > 0) & learnt_B)


def _has_lists(dataset: Any) -> bool:
    """Whether tokens, and labels where there are any, stand in a file as lists of numbers."""
    if not is_stored(dataset) or "input_ids" not in dataset.column_names:
        return False
    kinds = [column_type(dataset, column) for column in ("input_ids", "labels") if column in dataset.column_names]
    return all(is_list(kind) and is_number(kind.value_type) for kind in kinds)


def _numbers(dataset: Any, column: str) -> Iterator[NDArray[np.float64] | int]:
    """Yields the numbers of a stretch of rows, or how many rows a stretch has none of which has the column."""
    for part, own in stored_parts(dataset):
        size = len(part) if own is None else len(own)
        if is_stored(part) and column not in part.column_names:
            yield size
        elif is_stored(part) and is_number(column_type(part, column)):
            for table in tables(part, [column], own):
                values = numbers(whole(table.column(column))).astype(np.float64)
                yield values if table.column(column).null_count != len(values) else len(values)
        else:
            every = range(size) if own is None else own
            for chunk in column_chunks(part, column, every):
                if any(value.size > 1 or value.dtype.kind not in "fiu" for value in chunk if value.size):
                    raise ValueError(f"the column {column!r} holds something else than one number per row")
                some = any(value.size for value in chunk)
                yield np.array([value.item() if value.size else np.nan for value in chunk]) if some else len(chunk)


def stored_parts(dataset: Any, rows: NDArray[np.int64] | None = None) -> Iterator[tuple[Any, NDArray[np.int64] | None]]:
    """Yields datasets with the rows of them, None for all, that make up a dataset: looks through what picks or joins.

    Args:
        dataset: Any dataset with a length.
        rows: (n,) some rows of it, None for all; where several are joined, in the order of the rows.
    """
    match dataset:
        case Subset():
            picked = np.asarray(dataset.indices, dtype=np.int64)
            yield from stored_parts(dataset.dataset, picked if rows is None else picked[rows])
        case PlannedRows():
            yield from stored_parts(dataset.dataset, dataset.rows if rows is None else dataset.rows[rows])
        case MixedSources() if rows is None:
            for source in dataset.sources:
                yield from stored_parts(source)
        case ConcatDataset() if rows is None:
            for source in dataset.datasets:
                yield from stored_parts(source)
        case _:
            yield dataset, rows


def _is_learnt(labels: NDArray[Any]) -> bool:
    return not labels.size or bool((labels[1:] != IGNORED).any())
