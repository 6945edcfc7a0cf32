"""An endless shuffled order of rows that can be entered anywhere without being stored.

A shuffled list of N rows costs 8N bytes and, on resume, the time to draw it again. Here the order of an epoch is a
keyed permutation that is computed for just the positions asked for: a balanced Feistel network over the smallest even
number of bits that holds N, with cycle walking (encrypt again until the value is below N, at most 4 times on average).
So the state of an order is one number, the position; memory is that of the rows asked for; and position 10^8 is found
as fast as 0.

Rejected: a linear congruential generator with full period (neighbouring rows stay correlated).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dataflex.core.component import seeded

_Step = Callable[[NDArray[np.uint64], NDArray[np.uint64]], NDArray[np.uint64]]

ROUNDS = 6  # 4 already pass as a pseudo-random permutation (Luby and Rackoff 1988); 6 also for a dozen rows


class Permutation(ABC):
    """Which row of a source comes when."""

    @abstractmethod
    def take(self, start: int, count: int) -> NDArray[np.int64]:
        """Returns the rows at positions ``start`` to ``start + count``: (count,) int64."""


class RowOrder(Permutation):
    """All rows in a random order, then all rows in another, without end.

    Args:
        size: Number of rows, N >= 1.
        *key: What the order depends on: the run's seed, and whose order it is.
    """

    def __init__(self, size: int, *key: object) -> None:
        if size < 1:
            raise ValueError(f"an order needs at least one row, got {size}")
        self.size = size
        self._keys = [np.uint64(seeded(*key, i)) for i in range(ROUNDS)]
        self._half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)

    def take(self, start: int, count: int) -> NDArray[np.int64]:
        """Returns the rows at positions ``start`` to ``start + count``: (count,) int64, each below N.

        No row comes twice inside an epoch of N positions.
        """
        return self.at(np.arange(start, start + count, dtype=np.int64))

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the rows at some positions: (n,) int64, each below N."""
        epochs, values = np.divmod(positions.astype(np.uint64), np.uint64(self.size))
        return self._walked(self._encrypt, values, epochs)

    def places(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Returns where in an epoch rows come: (n,) int64, each below N. What :meth:`take` does, backwards.

        Args:
            rows: (n,) row numbers below N.
            epoch: Number of the epoch, from 0.
        """
        return self._walked(self._decrypt, rows.astype(np.uint64), np.full(len(rows), epoch, dtype=np.uint64))

    def _walked(self, step: _Step, values: NDArray[np.uint64], epochs: NDArray[np.uint64]) -> NDArray[np.int64]:
        values = step(values, epochs)
        outside = np.flatnonzero(values >= self.size)
        while outside.size:
            values[outside] = step(values[outside], epochs[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64)

    def _encrypt(self, values: NDArray[np.uint64], epochs: NDArray[np.uint64]) -> NDArray[np.uint64]:
        half = np.uint64(self._half_bits)
        mask = np.uint64((1 << self._half_bits) - 1)
        left, right = values >> half, values & mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + _mix(epochs + key)) & mask)
        return (left << half) | right

    def _decrypt(self, values: NDArray[np.uint64], epochs: NDArray[np.uint64]) -> NDArray[np.uint64]:
        half = np.uint64(self._half_bits)
        mask = np.uint64((1 << self._half_bits) - 1)
        left, right = values >> half, values & mask
        for key in reversed(self._keys):
            left, right = right ^ (_mix(left + _mix(epochs + key)) & mask), left
        return (left << half) | right


class ReadingOrder(Permutation):
    """The rows of a source without an end, in the order of reading."""

    def take(self, start: int, count: int) -> NDArray[np.int64]:
        """Returns these positions."""
        return np.arange(start, start + count, dtype=np.int64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The 64-bit finaliser of SplitMix64 (Steele, Lea and Flood 2014); overflow is meant to wrap."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
