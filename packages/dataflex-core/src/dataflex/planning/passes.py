"""The rows of a source without replacement: each row of the pool comes once before any comes again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.core.permutation import RowOrder

_AT_LEAST, _AT_MOST = 1024, 1 << 20  # places to look at in one go


class Passes:
    """A random order of rows that is walked through, again and again, passing over what is not in the pool.

    A pool may change in the middle of a pass: rows that it takes in behind the place of the walk come in the next one.

    Args:
        size: N rows, at least one.
        *key: What the order depends on.
    """

    def __init__(self, size: int, *key: object) -> None:
        self._order = RowOrder(size, *key)
        self._position = 0

    def take(self, count: int, pool_N: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Returns the next rows: (count,) int64, each below N.

        Args:
            count: How many.
            pool_N: (N,) which rows may be taken, at least one of them; None for all.
        """
        if pool_N is None:
            rows = self._order.take(self._position, count)
            self._position += count
            return rows
        parts, missing, share = [np.empty(0, dtype=np.int64)], count, float(pool_N.mean())
        while missing:
            looked_at = min(max(_AT_LEAST, int(1.1 * missing / share)), _AT_MOST)
            rows = self._order.take(self._position, looked_at)
            places = np.flatnonzero(pool_N[rows])[:missing]
            parts.append(rows[places])
            missing -= len(places)
            self._position += looked_at if missing else int(places[-1]) + 1
        return np.concatenate(parts)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._position = int(state["position"])
