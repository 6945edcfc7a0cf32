"""One dataset as several sources, by a label for each of its rows.

A mixture plans the rows of each source by numbers that follow each other, so the rows are put in the order of their
sources. Who goes by the row numbers of the dataset as it was given, as files with a number for each row do, asks for
the rows in the given order.

Letters: N rows, K sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from dataflex.core.source_labels import SourceLabels
from dataflex.rows.views import MixedSources, PlannedRows


class SplitSources(MixedSources):
    """The rows of one dataset, source after source; inside of a source in the order that they were given in.

    Args:
        sources: Name -> its rows.
        given: (N,) the number that each row had in the dataset as it was given.
        digest: What tells the labels from others.

    Attributes:
        given: See above.
        digest: See above.
        about: What the labels depend on, where they were computed from the rows; blank where they were given.
        words: Source -> the words that stand out in it, for the record; empty where nobody looked.
    """

    def __init__(self, sources: Mapping[str, Any], given: NDArray[np.int64], digest: str) -> None:
        super().__init__(sources)
        self.given, self.digest = given, digest
        self.about = ""
        self.words: dict[str, tuple[str, ...]] = {}

    @property
    def codes(self) -> NDArray[np.int64]:
        """(N,) the number of each row's source, in the given order."""
        found = np.empty(len(self.given), dtype=np.int64)
        found[self.given] = np.repeat(np.arange(len(self.names)), self.sizes)
        return found

    def with_sources(self, sources: Mapping[str, Any]) -> MixedSources:
        """Returns other rows of the same sources: a trainer has prepared them.

        Where it has dropped or joined rows, nothing is known any more of the order that they were given in.
        """
        if [len(part) for part in sources.values()] != self.sizes.tolist():
            return MixedSources(sources)
        found = SplitSources(sources, self.given, self.digest)
        found.about, found.words = self.about, dict(self.words)
        return found


def split(dataset: Any, labels: SourceLabels) -> SplitSources:
    """Returns the rows of a dataset by their labels.

    Args:
        dataset: A dataset with N rows by number.
        labels: A label for each row.
    """
    given = np.argsort(labels.codes, kind="stable")
    ends = np.cumsum(np.bincount(labels.codes, minlength=len(labels.names)))
    parts = np.split(given, ends[:-1])
    return SplitSources(
        {name: _some(dataset, rows) for name, rows in zip(labels.names, parts, strict=True)}, given, labels.digest
    )


def in_given_order(dataset: Any) -> Any:
    """Returns a dataset with its rows in the order that they were given in: a view, where that is another one."""
    if not isinstance(dataset, SplitSources):
        return dataset
    places = np.empty(len(dataset.given), dtype=np.int64)
    places[dataset.given] = np.arange(len(dataset.given))
    return PlannedRows(dataset, places)


def by_row_number(dataset: Any, values_N: NDArray[Any]) -> NDArray[Any]:
    """Returns numbers that are in the given order, in the order of a dataset's row numbers."""
    return values_N[dataset.given] if isinstance(dataset, SplitSources) else values_N


def _some(dataset: Any, rows: NDArray[np.int64]) -> Any:
    return dataset.select(rows) if isinstance(dataset, datasets.Dataset) else PlannedRows(dataset, rows)
