"""The rows with the highest and the lowest numbers of many, found part by part.

Of a row that comes again, its highest and its lowest count. Rows of equal numbers come in the order of their row
numbers, so that no part and no rank decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENDS = 5
"""Rows of each end."""

_Pairs = tuple[NDArray[np.int64], NDArray[np.float64]]
_NONE: _Pairs = (np.empty(0, dtype=np.int64), np.empty(0))


class ExtremeRows:
    """At most :data:`ENDS` rows of either end, with their numbers.

    Args:
        most: The rows with the highest numbers and these, highest first.
        least: The rows with the lowest numbers and these, lowest first.
    """

    def __init__(self, most: _Pairs = _NONE, least: _Pairs = _NONE) -> None:
        self._most, self._least = most, least

    @classmethod
    def of(cls, rows: NDArray[np.int64], values: NDArray[np.float64]) -> ExtremeRows:
        """Returns the ends of some rows.

        Args:
            rows: (X,) row numbers; -1 where it is not known.
            values: (X,) a number for each.
        """
        known = rows >= 0
        return cls(_ends(rows[known], values[known], -1), _ends(rows[known], values[known], 1))

    @classmethod
    def joined(cls, parts: Sequence[ExtremeRows]) -> ExtremeRows:
        """Returns the ends of what several are the ends of."""
        most = [np.concatenate(each) for each in zip(*(part._most for part in parts), strict=True)]
        least = [np.concatenate(each) for each in zip(*(part._least for part in parts), strict=True)]
        return cls(_ends(most[0], most[1], -1), _ends(least[0], least[1], 1))

    def packed(self) -> NDArray[np.int64]:
        """Returns all of it as 4 times :data:`ENDS` integers, the same number whatever there is."""
        found = np.full((4, ENDS), -1, dtype=np.int64)
        for place, (rows, values) in enumerate((self._most, self._least)):
            found[2 * place, : len(rows)] = rows
            found[2 * place + 1, : len(rows)] = values.view(np.int64)
        return found.ravel()

    @classmethod
    def unpacked(cls, packed: NDArray[np.int64]) -> ExtremeRows:
        """Returns what :meth:`packed` returned."""
        ends = []
        for rows, bits in np.ascontiguousarray(packed).reshape(2, 2, ENDS):
            there = rows >= 0
            ends.append((rows[there], np.ascontiguousarray(bits[there]).view(np.float64)))
        return cls(*ends)

    def named(self) -> dict[str, Any]:
        """Returns ``most`` and ``least`` as lists of ``[row, number]``; nothing where no row is known."""
        if not len(self._most[0]):
            return {}
        return {"most": _listed(self._most), "least": _listed(self._least)}


def _listed(end: _Pairs) -> list[list[Any]]:
    """Returns an end for the record, with 9 digits."""
    return [[row, float(f"{value:.9g}")] for row, value in zip(end[0].tolist(), end[1].tolist(), strict=True)]


def _ends(rows: NDArray[np.int64], values: NDArray[np.float64], sign: int) -> _Pairs:
    """Returns the first rows by ``sign`` times their numbers, each once."""
    order = np.lexsort((rows, sign * values))
    _, firsts = np.unique(rows[order], return_index=True)
    kept = order[np.sort(firsts)[:ENDS]]
    return rows[kept], values[kept]
