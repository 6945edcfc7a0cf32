"""Which rows these are: a short digest by which a file or a checkpoint is known to belong to a dataset.

It is cheap for any size: of a large dataset a fixed sample of rows is read, the same in every process and run. So it
tells another file, split, template or cut-off length from the right one; a single changed row among millions it may
miss. What a cache of scores depends on is read whole instead (:mod:`dataflex.scoring.fingerprint`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dataflex.data.order import RowOrder
from dataflex.data.rows import fetch

SAMPLE = 4096
"""Rows that are read of a dataset that has more."""


def rows_digest(dataset: Any) -> str:
    """Returns 16 hexadecimal digits for the number, the order and the content of the rows. Makes no collective call.

    Args:
        dataset: A dataset with a length and rows by number: any but a stream.
    """
    size = len(dataset)
    wanted = np.arange(size, dtype=np.int64) if size <= SAMPLE else np.sort(RowOrder(size, "digest").take(0, SAMPLE))
    state = hashlib.blake2b(str(size).encode(), digest_size=8)
    for row in fetch(dataset, wanted):
        state.update(repr(_plain(row)).encode())
    return state.hexdigest()


def _plain(value: Any) -> Any:
    """Returns the value such that its ``repr`` is the same in every process: of other objects, the class alone."""
    match value:
        case torch.Tensor() | np.ndarray() | np.generic():
            return value.tolist()
        case Mapping():
            return sorted((str(key), _plain(item)) for key, item in value.items())
        case list() | tuple():
            return list(value) if all(type(item) is int for item in value) else [_plain(item) for item in value]
        case str() | bytes() | int() | float() | None:
            return value
    return type(value).__qualname__
