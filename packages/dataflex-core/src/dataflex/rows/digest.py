"""Which rows these are: a short digest by which a file or a checkpoint is known to belong to a dataset.

It is cheap for any size: of a large dataset a fixed sample of rows is read, the same in every process and run. So it
tells another file, split, template or cut-off length from the right one; a single changed row among millions it may
miss. What a cache of scores depends on is read whole instead (:mod:`dataflex.scoring.passes.fingerprint`).

Numbers count, not what holds them. A number, a list of numbers (of lists of one length), an array and a tensor are
taken as an array of one of four types - bool, int64, float64, complex128 - by its shape and its bytes: ``[1, 2]`` is
an int32 tensor of 1 and 2, and a bfloat16 tensor is the list of its values.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from operator import itemgetter
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.permutation import RowOrder
from dataflex.rows.views import fetch
from dataflex.utils.progress import Progress

SAMPLE = 4096
"""Rows that are read of a dataset that has more."""
BLOCK = 64
"""Rows that are held at a time: one may be a picture, or several."""

_STORED = {"b": "?", "i": "<i8", "u": "<i8", "f": "<f8", "c": "<c16"}  # kind of a numpy type -> how it is digested


@runtime_checkable
class Bytes(Protocol):
    """An object that gives its content as bytes, as images of PIL do."""

    def tobytes(self) -> bytes:
        """Returns the content."""


@runtime_checkable
class Picture(Bytes, Protocol):
    """An image of PIL: the same bytes may be one of another shape."""

    @property
    def mode(self) -> str:
        """What a pixel is."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""


def rows_digest(dataset: Any) -> str:
    """Returns 16 hexadecimal digits for the number, the order and the content of the rows. Makes no collective call.

    Args:
        dataset: A dataset with a length and rows by number: any but a stream.
    """
    size = len(dataset)
    wanted = np.arange(size, dtype=np.int64) if size <= SAMPLE else np.sort(RowOrder(size, "digest").take(0, SAMPLE))
    state = blake2b(str(size).encode(), digest_size=8)
    with Progress("reading rows to know the dataset by", len(wanted)) as progress:
        for start in range(0, len(wanted), BLOCK):
            for row in fetch(dataset, wanted[start : start + BLOCK]):
                _add(state, row)
                progress.done()
    return state.hexdigest()


def _add(state: blake2b, value: Any) -> None:
    """Takes in a value such that it is the same in every process: of an object without bytes, the class alone."""
    match value:
        case str():
            _put(state, "text", value.encode(errors="surrogatepass"))
        case bytes():
            _put(state, "bytes", value)
        case None:
            _put(state, "none")
        case torch.Tensor():
            _add_array(state, _array_of(value))
        case np.ndarray() | np.generic():
            _add_array(state, np.asarray(value))
        case bool() | int() | float() | complex():
            _add_array(state, np.asarray(value))
        case Mapping():
            _put(state, f"mapping {len(value)}")
            for key, item in sorted(((str(key), item) for key, item in value.items()), key=itemgetter(0)):
                _put(state, "key", key.encode(errors="surrogatepass"))
                _add(state, item)
        case list() | tuple():
            _add_list(state, value)
        case Picture():
            _put(state, f"{type(value).__qualname__} {value.mode} {value.size}", value.tobytes())
        case Bytes():
            _put(state, type(value).__qualname__, value.tobytes())
        case _:
            _put(state, type(value).__qualname__)


def _add_list(state: blake2b, value: list[Any] | tuple[Any, ...]) -> None:
    first: Any = value
    while isinstance(first, list | tuple) and first:
        first = first[0]
    if isinstance(first, int | float | list | tuple):
        try:
            numbers = np.asarray(value)
        except (ValueError, TypeError, OverflowError):  # lists of several lengths, or of other things as well
            pass
        else:
            if numbers.dtype.kind in _STORED:
                _add_array(state, numbers)
                return
    _put(state, f"list {len(value)}")
    for item in value:
        _add(state, item)


def _array_of(tensor: torch.Tensor) -> NDArray[Any]:
    dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    if dense.is_floating_point():  # numpy has no bfloat16
        dense = dense.to(torch.float64) if dense.device.type == "cpu" else dense.cpu().to(torch.float64)
    return dense.cpu().resolve_conj().resolve_neg().numpy()


def _add_array(state: blake2b, array: NDArray[Any]) -> None:
    kind = array.dtype.kind
    if kind in _STORED:
        stored = _STORED[kind] if array.size else ""  # an empty list has no type
        _put(state, f"array {stored} {array.shape}", np.ascontiguousarray(array, _STORED[kind]).tobytes())
    elif array.dtype.hasobject or kind in "US":
        content = array.tolist()
        if isinstance(content, list):
            _add_list(state, content)
        elif isinstance(content, int):  # of more than 64 bits
            _put(state, "number", str(content).encode())
        else:
            _add(state, content)
    else:
        _put(state, f"array {array.dtype.str} {array.shape}", array.tobytes())


def _put(state: blake2b, what: str, content: bytes = b"") -> None:
    """Takes in a value with its kind and its length: what follows cannot be taken for a part of it."""
    state.update(f"{what} {len(content)}:".encode())
    state.update(content)
