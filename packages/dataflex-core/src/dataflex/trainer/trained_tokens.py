"""How many tokens a run has trained on, from the lengths of its rows, where these are at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.rows.source_table import SourceTable


class TrainedTokens:
    """Adds up the tokens of the segments, and of the steps of the present one.

    Args:
        table: The rows.
        batch: Rows of a step over all ranks.
    """

    def __init__(self, table: SourceTable, batch: int) -> None:
        self._table, self._batch = table, batch
        self._before = self._start = 0  # tokens of the segments that are over; where the present one begins
        self._sums: NDArray[np.int64] = np.zeros(1, dtype=np.int64)  # of its first 0, 1, 2 ... steps
        self._lost = False

    def begin(self, lines: Sequence[Mapping[str, Any]], done: int) -> None:
        """Takes up what the record holds of the segments that are over.

        Args:
            lines: The lines of all segments.
            done: Where the last of these ends, in steps; what lies behind comes with :meth:`add`.
        """
        kept = [line for line in lines if line["step"] < done]
        whole = sum(_count(line, "steps") for line in kept) == done
        self._lost = not whole or any(not isinstance(line.get("tokens"), int) for line in kept)
        self._before = sum(_count(line, "tokens") for line in kept)

    def add(self, start: int, steps: int, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """A segment begins. Returns the tokens of its rows: (S,), None where they are not at hand."""
        lengths = self._table.lengths(rows)
        self._before += int(self._sums[-1])
        of_steps = np.zeros(steps, dtype=np.int64)
        if lengths is not None:
            places = np.minimum(np.arange(len(rows)) // self._batch, steps - 1)
            of_steps = np.bincount(places, lengths, minlength=steps).astype(np.int64)
        self._start, self._sums = start, np.concatenate([[0], np.cumsum(of_steps)])
        return lengths

    def at(self, step: int) -> int | None:
        """Returns the tokens of the steps so far; None where they are not known."""
        if self._lost or not self._table.knows_lengths:
            return None
        return self._before + int(self._sums[min(max(step - self._start, 0), len(self._sums) - 1)])


def _count(line: Mapping[str, Any], key: str) -> int:
    found = line.get(key)
    return found if isinstance(found, int) else 0
