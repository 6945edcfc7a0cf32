"""The rows that the steps of a stretch of training choose from: each its own, of one pass over the dataset.

A pass goes over all rows in a random order, then over all of them in another; each step takes the next ones, as a
dataloader with larger batches would. Rows without a label are passed over, and so are rows that a step of the same
stretch has chosen already; those that it left come again in the next pass.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from dataflex.core.permutation import RowOrder
from dataflex.rows.columns import labelled_rows
from dataflex.rows.views import PlannedRows
from numpy.typing import NDArray


def step_sizes(rows: int, steps: int, most: int) -> list[int]:
    """Returns how many rows each step takes: they sum to ``rows`` and differ by at most 1, the larger ones first.

    Args:
        rows: Rows of the stretch.
        steps: Its optimizer steps. Where a stretch has fewer rows, or a filter asks for more than its steps train on,
            there are fewer or more lots than that.
        most: Rows of an optimizer step.
    """
    lots = min(rows, max(steps, -(-rows // most)))
    return [rows // lots + (place < rows % lots) for place in range(lots)] if lots else []


def candidates_of(rows: int, ratio: float) -> int:
    """Returns how many rows a step of ``rows`` chooses from: ``ratio`` times as many, rounded up."""
    return math.ceil(ratio * rows - 1e-9 * rows)  # 1.1 * 10 is 11, and not 11.000000000000002


class StepCandidates:
    """Deals rows out to steps. Its state is one number, and memory that of the rows of a stretch.

    Args:
        dataset: The train dataset, with at least one row.
        *key: What the order depends on.

    Attributes:
        position: Rows of the pass that were looked at so far.
    """

    def __init__(self, dataset: Any, *key: object) -> None:
        self._dataset = dataset
        self._order = RowOrder(len(dataset), *key)
        self.position = 0

    def draw(self, count: int, without: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the next ``count`` rows with a label, no row twice: (n,), fewer where there are no more.

        Args:
            count: How many.
            without: Rows that are not wanted, those that the stretch has chosen.
        """
        size = len(self._dataset)
        found: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        end = self.position + size + -self.position % size  # the rest of this pass, and a whole one
        look = count
        while len(found) < count and self.position < end:
            look = min(look, end - self.position)
            rows = self._order.take(self.position, look)
            _, first = np.unique(rows, return_index=True)
            places = np.sort(first)
            places = places[~np.isin(rows[places], without) & ~np.isin(rows[places], found)]
            places = places[labelled_rows(PlannedRows(self._dataset, rows[places]))]
            missing = count - len(found)
            found = np.concatenate([found, rows[places[:missing]]])
            self.position += look if len(places) < missing else int(places[missing - 1]) + 1
            look *= 2  # where most rows are unwanted, to look at a few at a time takes long
        return found
