"""Views of the train dataset: some of its rows in a given order, and several sources as one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Subset

from dataflex.core.named_sources import NamedSources

Row = Mapping[str, Any]


def fetch(dataset: Any, rows: Sequence[int] | NDArray[np.int64]) -> list[Row]:
    """Returns the rows as a list, in one access where the dataset has batched access (``__getitems__``)."""
    wanted = [int(row) for row in rows]
    batched = getattr(type(dataset), "__getitems__", None)
    if batched is not None:
        found: list[Row] = batched(dataset, wanted)
        return found
    return [dataset[row] for row in wanted]


class PlannedRows(Dataset[Row]):
    """The rows of one segment in the order of training.

    Unlike ``torch.utils.data.Subset`` it keeps the row numbers as 8-byte integers, not as a list of Python objects.

    Args:
        dataset: The train dataset.
        rows: (S,) row numbers.
    """

    def __init__(self, dataset: Any, rows: NDArray[np.int64]) -> None:
        self.dataset = dataset
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Row:
        row: Row = self.dataset[int(self.rows[position])]
        return row

    def __getitems__(self, positions: list[int]) -> list[Row]:
        return fetch(self.dataset, self.rows[positions])


class MixedSources(NamedSources, Dataset[Row]):
    """Several source datasets, one after the other. Row ``i`` of source ``k`` is row ``offsets[k] + i``.

    Args:
        sources: Name -> tokenised dataset, in the order of the user's ``dataset`` key.

    Attributes:
        names: (K) names of the sources.
        sizes: (K,) rows of each.
        offsets: (K + 1,) first row of each, and the number of all rows.
    """

    def __init__(self, sources: Mapping[str, Any]) -> None:
        self.sources = list(sources.values())
        self.names = tuple(sources)
        self.sizes: NDArray[np.int64] = np.array([len(source) for source in self.sources], dtype=np.int64)
        self.offsets: NDArray[np.int64] = np.concatenate([[0], np.cumsum(self.sizes)])

    def sources_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the source number of each row: same shape, in [0, K)."""
        return np.searchsorted(self.offsets, rows, side="right") - 1

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, row: int) -> Row:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        number = int(np.searchsorted(self.offsets, row, side="right")) - 1
        found: Row = self.sources[number][int(row - self.offsets[number])]
        return found

    def __getitems__(self, rows: list[int]) -> list[Row]:
        wanted = np.asarray(rows, dtype=np.int64)
        numbers = self.sources_of(wanted)
        found: list[Row] = [{}] * len(wanted)
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            part = fetch(self.sources[number], wanted[places] - self.offsets[number])
            for place, row in zip(places, part, strict=True):
                found[place] = row
        return found

    def __iter__(self) -> Iterator[Row]:
        for source in self.sources:
            yield from source

    def domains(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns :meth:`sources_of`, under its name of version 0.1."""
        warnings.warn("MixedSources.domains is now named sources_of", DeprecationWarning, stacklevel=2)
        return self.sources_of(rows)


def rows_within(part: Any, whole: Any) -> NDArray[np.int64] | None:
    """Returns which rows of a dataset another one has: (S,) row numbers of ``whole``; None where it is no part of it.

    Args:
        part: The dataset itself, a source of it, or a view (``PlannedRows``, ``Subset``) of one of these.
        whole: A dataset with a length.
    """
    rows: NDArray[np.int64] | None = None
    while isinstance(part, PlannedRows | Subset) and part is not whole:
        own = part.rows if isinstance(part, PlannedRows) else np.asarray(part.indices, dtype=np.int64)
        rows, part = own if rows is None else own[rows], part.dataset
    firsts = {id(whole): 0}
    if isinstance(whole, MixedSources):
        firsts |= {id(source): int(first) for source, first in zip(whole.sources, whole.offsets[:-1], strict=True)}
    first = firsts.get(id(part))
    if first is None:
        return None
    return np.arange(first, first + len(part), dtype=np.int64) if rows is None else rows + first
