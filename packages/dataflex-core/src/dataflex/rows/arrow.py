"""Columns of a stored dataset as arrays, a stretch of rows at a time: no row becomes Python objects.

A dataset of 100 million rows is a file that is mapped into memory. Its columns can be gone through at the speed of the
disk, and a number for each row is a few hundred megabytes; as lists of Python integers the same is days and terabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from numpy.typing import NDArray

_ROWS = 65_536  # rows at a time


def is_stored(dataset: Any) -> bool:
    """Returns whether a column can be read without the others; a transform makes rows when they are read."""
    return isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom"


def tables(dataset: datasets.Dataset, columns: Sequence[str], rows: NDArray[np.int64] | None = None) -> Iterator[Any]:
    """Yields Arrow tables of some columns, in the order of the rows and at most 65,536 of them at a time.

    Args:
        dataset: A stored dataset.
        columns: Columns that it has, at least one.
        rows: (n,) row numbers; None for all, which are not copied where the dataset is as it stands in its file.
    """
    view = dataset.with_format("arrow", columns=list(columns))
    for start in range(0, len(dataset) if rows is None else len(rows), _ROWS):
        yield view[start : start + _ROWS] if rows is None else view[rows[start : start + _ROWS]]


def column_type(dataset: datasets.Dataset, column: str) -> Any:
    """Returns the Arrow type of a column."""
    return dataset.data.column(column).type


def is_list(kind: Any) -> bool:
    """Returns whether an Arrow type is one of lists, of any or of one length."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_number(kind: Any) -> bool:
    """Returns whether an Arrow type is one of integers or floats."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def whole(column: Any) -> Any:
    """Returns a column of a table as one array."""
    parts = [part for part in column.chunks if len(part)]
    if len(parts) == 1:
        return parts[0]
    return pa.concat_arrays(parts) if parts else pa.array([], column.type)


def list_parts(lists: Any) -> tuple[NDArray[np.int64], Any]:
    """Returns the length of each list, 0 for null, and what they hold, one after the other: (B,) and an Arrow array."""
    lengths_B = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths_B, lists.flatten()


def numbers(array: Any) -> NDArray[Any]:
    """Returns an array of numbers; floats, NaN for null, where there is a null."""
    found: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return found


def any_after_first(flags: NDArray[np.bool_], lengths_B: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns which lists have a flag set behind their first place: (B,).

    Args:
        flags: The flags of all lists, one after the other.
        lengths_B: (B,) lengths of the lists.
    """
    ends_B = np.cumsum(lengths_B)
    firsts = (ends_B - lengths_B)[lengths_B > 0]
    counted = flags.copy()
    counted[firsts] = False
    before = np.concatenate([[0], np.cumsum(counted)])
    return np.asarray(before[ends_B] > before[ends_B - lengths_B])


def feed_array(state: Any, array: Any) -> None:
    """Feeds the content of an array to a hash, such that it does not matter what the array is a part of.

    Args:
        state: A hash of :mod:`hashlib`.
        array: An Arrow array of any type.
    """
    kind = array.type
    state.update(f"{len(array)} ".encode())
    if isinstance(array, pa.ExtensionArray):
        feed_array(state, array.storage)
        return
    if array.null_count:
        state.update(np.packbits(array.is_null().to_numpy(zero_copy_only=False)).tobytes())
    if is_list(kind):
        lengths_B, values = list_parts(array)
        state.update(lengths_B)
        feed_array(state, values)
    elif pa.types.is_struct(kind):
        for part in array.flatten():
            feed_array(state, part)
    elif pa.types.is_dictionary(kind):
        feed_array(state, array.dictionary_decode())
    elif is_number(kind) or pa.types.is_boolean(kind):
        filled = pc.fill_null(array, False if pa.types.is_boolean(kind) else 0)
        state.update(np.ascontiguousarray(filled.to_numpy(zero_copy_only=False)))
    elif any(test(kind) for test in _TEXTS):
        _feed_texts(state, array)
    else:  # dates, decimals, maps: seldom, and without one form of bytes
        state.update(repr(array.to_pylist()).encode())


_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


def _feed_texts(state: Any, array: Any) -> None:
    plain = pc.fill_null(array.cast(pa.large_binary()), b"")
    if not len(plain):
        return
    _, offsets, content = plain.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[plain.offset : plain.offset + len(plain) + 1]
    state.update(np.diff(ends))
    if content is not None:
        state.update(np.frombuffer(content, dtype=np.uint8)[ends[0] : ends[-1]])
