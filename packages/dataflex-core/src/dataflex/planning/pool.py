"""The pool: the rows that the filters of a run have kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.core.errors import ComponentError


class Pool:
    """Which rows may be trained on. What a filter decided stands until it decides again.

    Args:
        size: N rows of the train dataset.
        filters: How many filters there are.

    Attributes:
        mask: (N,) bool, the rows that every filter keeps; None while no filter has decided.
    """

    def __init__(self, size: int, filters: int) -> None:
        self._size = size
        self._kept: list[NDArray[np.bool_] | None] = [None] * filters
        self._versions = [0] * filters
        self.mask: NDArray[np.bool_] | None = None

    def before(self, number: int) -> NDArray[np.bool_] | None:
        """Returns the rows that a filter is shown: those which the filters before it keep; None for all."""
        return _all_of(self._kept[:number])

    def version(self, number: int | None = None) -> int:
        """Returns what changes whenever the pool does, or the rows that a filter is shown."""
        return sum(self._versions[:number])

    def keep(self, number: int, rows: NDArray[np.int64], who: str) -> None:
        """Notes what a filter keeps.

        Args:
            number: The filter, from 0.
            rows: Row numbers.
            who: The filter, the update and the step.

        Raises:
            ComponentError: No row is left that every filter keeps.
        """
        kept = np.zeros(self._size, dtype=np.bool_)
        kept[rows] = True
        self._kept[number] = kept
        self._versions[number] += 1
        self.mask = _all_of(self._kept)
        assert self.mask is not None
        if not self.mask.any():
            raise ComponentError(
                f"{who} keeps {len(rows)} rows, and the filters after it, which decided earlier, keep none of these -> "
                "give them the same every:, or a larger keep:"
            )

    def state_dict(self) -> dict[str, Any]:
        """Returns what each filter keeps, a bit for each row."""
        return {
            "versions": list(self._versions),
            "kept": [None if kept is None else np.packbits(kept) for kept in self._kept],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._kept = [
            None if bits is None else np.unpackbits(np.asarray(bits), count=self._size).astype(np.bool_)
            for bits in state["kept"]
        ]
        self._versions = list(map(int, state["versions"]))
        self.mask = _all_of(self._kept)


def _all_of(masks: Sequence[NDArray[np.bool_] | None]) -> NDArray[np.bool_] | None:
    """Returns the rows that every mask has; None where there is no mask."""
    found: NDArray[np.bool_] | None = None
    for mask in masks:
        if mask is not None:
            found = mask if found is None else found & mask
    return found
