"""Images, videos and sounds of rows, as LLaMA-Factory keeps them: in columns beside the tokens, as paths or as bytes.

The collator reads them when it makes a batch. What the model is given of them (patches of all images, one after the
other) has no dimension of rows, so a row of such a batch cannot be cut out of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.rows.arrow import is_stored
from dataflex.rows.views import fetch

MEDIA = ("images", "videos", "audios")
"""The columns."""

_TEXT = frozenset({"input_ids", "attention_mask", "position_ids", "token_type_ids", "labels"})
_ROWS = 1024  # read at a time


def has_media(row: Mapping[str, Any]) -> bool:
    """Returns whether a row has an image, a video or a sound."""
    return any(bool(row.get(column)) for column in MEDIA)


def first_with_media(dataset: Any) -> int | None:
    """Returns the first row with an image, a video or a sound; None where no row has one.

    A stored dataset is asked for these columns alone; one without them is not read.
    """
    for start, rows in _media_rows(dataset):
        for place, row in enumerate(rows):
            if has_media(row):
                return start + place
    return None


def file_facts(row: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Returns path, size and time of change of each file that a row names: what it shows may change under its name."""
    found = []
    for column in MEDIA:
        for item in row.get(column) or ():
            path = item.get("path") if isinstance(item, Mapping) else item
            if isinstance(path, str) and os.path.isfile(path):
                known = os.stat(path)
                found.append((path, known.st_size, known.st_mtime_ns))
    return found


def all_file_facts(dataset: Any) -> Iterator[list[tuple[str, int, int]]]:
    """Yields :func:`file_facts` of each row of a stored dataset, read a thousand at a time; of no other columns."""
    for _, rows in _media_rows(dataset):
        yield from map(file_facts, rows)


def is_text(batch: Mapping[str, Any]) -> bool:
    """Returns whether a batch holds tokens alone, all of its tensors having a dimension of rows first.

    Args:
        batch: What a collator made, with or without labels.
    """
    flat = all(not isinstance(value, torch.Tensor) or name in _TEXT for name, value in batch.items())
    positions = batch.get("position_ids")
    return flat and (positions is None or positions.ndim < 3)  # one axis for each of time, height and width


def _media_rows(dataset: Any) -> Iterator[tuple[int, list[Mapping[str, Any]]]]:
    if is_stored(dataset):
        columns = [column for column in MEDIA if column in dataset.column_names]
        if not columns:
            return
        dataset = dataset.select_columns(columns)
    for start in range(0, len(dataset), _ROWS):
        rows: NDArray[np.int64] = np.arange(start, min(start + _ROWS, len(dataset)))
        yield start, list(fetch(dataset, rows))
