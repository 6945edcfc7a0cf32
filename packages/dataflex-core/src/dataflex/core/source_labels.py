"""Which source each row belongs to, where one dataset is to become several: a label for each row.

Letters: N rows, K sources, U different values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.core.decision_hash import decision_hash
from dataflex.core.errors import ConfigError, rows_named
from dataflex.core.named_sources import LABEL_SUFFIXES, MOST_SOURCES
from dataflex.core.numpy_files import load_array


@dataclass(frozen=True)
class SourceLabels:
    """A label for each row.

    Attributes:
        names: (K,) the sources, K >= 2, sorted: numbers by size, texts by letters.
        codes: (N,) int64, the place of each row's source among them; every place is some row's.
    """

    names: tuple[str, ...]
    codes: NDArray[np.int64]

    @property
    def digest(self) -> str:
        """Tells these labels from others."""
        return decision_hash(self.codes) + decision_hash(np.frombuffer("\x1f".join(self.names).encode(), np.uint8))


def coded(values: Sequence[Any], codes_N: NDArray[np.int64], key: str, origin: str) -> SourceLabels:
    """Returns labels in the order of their names.

    Args:
        values: (U,) different values: texts or whole numbers.
        codes_N: (N,) which of them each row has; -1 where it has none.
        key: What the user wrote, for messages: ``column:topic``.
        origin: Where the values come from, for messages.

    Raises:
        ConfigError: A row has no label or one that is no name, or there are too few sources, or too many.
    """
    named = [_named(value) for value in values]
    none = [place for place, name in enumerate(named) if name is None]
    missing = np.flatnonzero((codes_N < 0) | np.isin(codes_N, none))
    if len(missing):
        bad = codes_N[missing[0]]
        what = "no label" if bad < 0 or _is_blank(values[bad]) else f"the label {values[bad]!r:.80}"
        raise ConfigError(
            f"mixture_by: {key}: {rows_named(missing)} of {origin} have {what}; every row needs a text or a whole "
            "number -> give each row one, or leave these rows out"
        )
    numbers = all(isinstance(value, int) for value in values)
    texts = sorted({name for name in named if name is not None}, key=(lambda name: int(name)) if numbers else None)
    if len(texts) < 2:
        raise ConfigError(
            f"mixture_by: {key}: all {len(codes_N)} rows of {origin} have the label {', '.join(texts) or 'of no row'}, "
            "so there is one source -> name what tells rows apart, or leave mixture_by out"
        )
    if len(texts) > MOST_SOURCES:
        raise ConfigError(
            f"mixture_by: {key}: found {len(texts)} different labels in {len(codes_N)} rows of {origin}, "
            f"{', '.join(texts[:3])}, ...; at most {MOST_SOURCES} sources make sense -> name a column of categories, "
            "or write cluster:K"
        )
    places = {name: place for place, name in enumerate(texts)}
    order_U = np.array([places.get(name or "", 0) for name in named], dtype=np.int64)
    sources_N = order_U[codes_N]
    used = np.unique(sources_N)  # a value that no row has is no source
    if len(used) < len(texts):
        return coded(
            [int(texts[k]) if numbers else texts[k] for k in used], np.searchsorted(used, sources_N), key, origin
        )
    return SourceLabels(tuple(texts), sources_N)


def labels_of_values(values: Sequence[Any], key: str, origin: str) -> SourceLabels:
    """As :func:`coded`, from a value for each row; None, NaN and a blank text are no label."""
    places: dict[Any, int] = {}
    found: list[Any] = []
    codes_N = np.empty(len(values), dtype=np.int64)
    for row, value in enumerate(values):
        plain = value.item() if isinstance(value, np.generic) else value
        if _is_blank(plain):
            codes_N[row] = -1
            continue
        place = plain if isinstance(plain, str) else (type(plain).__name__, repr(plain))
        if place not in places:
            places[place] = len(found)
            found.append(plain)
        codes_N[row] = places[place]
    return coded(found, codes_N, key, origin)


def read_label_file(path: Path, rows: int | None = None) -> SourceLabels:
    """Returns the labels of a file: a JSON list, an array of NumPy, or a text with a label in each line.

    Args:
        path: A ``.json``, ``.npy`` or ``.txt`` file.
        rows: N, the rows of the train dataset; None where that is not known yet.

    Raises:
        ConfigError: It cannot be read, holds something else, or not a label for each row.
    """
    key = f"file:{path.name}"
    try:
        values = _values(path)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(
            f"mixture_by: {key}: {path} cannot be read: {error} -> give a .json list, a .npy array or a .txt with a "
            "label in each line"
        ) from error
    if rows is not None and len(values) != rows:
        raise ConfigError(
            f"mixture_by: {key}: {path} has {len(values)} labels, and the train dataset {rows} rows once it is "
            "tokenised and rows without answers are dropped -> write one label for each of these, or put the labels "
            "into a column of the data, which stays with its row, and write column:NAME"
        )
    return labels_of_values(values, key, str(path))


def _values(path: Path) -> Sequence[Any]:
    if not path.is_file():
        raise OSError("it is no file" if path.exists() else "there is no such file")
    if path.suffix == ".json":
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, list):
            raise ValueError(f"it holds a {type(found).__name__}; needed: a list with a label for each row")
        return found
    if path.suffix == ".npy":
        array = load_array(path)
        if array.ndim != 1 or array.dtype.kind not in "iuU":
            what = f"it holds {array.dtype} of shape {array.shape}"
            raise ValueError(f"{what}; needed: a text or a whole number for each row")
        return array.tolist()  # type: ignore[no-any-return]
    if path.suffix == ".txt":
        return path.read_text(encoding="utf-8").splitlines()
    raise ValueError(f"it ends in {path.suffix!r}; allowed: {', '.join(LABEL_SUFFIXES)}")


def no_label(value: Any) -> bool:
    """Returns whether a value is no label: neither a whole number nor a text that is not blank."""
    return isinstance(value, bool) or not isinstance(value, int | str) or _is_blank(value)


def _named(value: Any) -> str | None:
    return None if no_label(value) else str(value).strip()


def _is_blank(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))
