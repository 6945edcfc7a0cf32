"""The first few of many rows by a number, without sorting all of them.

Sorting 100 million numbers takes half a minute and several times their memory; an update wants a few thousand. To find
the number of the last of those takes one pass. The result, ties included, is that of a sort.

Letters: N rows, K those that are wanted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def first_places(count: int, keys_N: NDArray[Any], *ties_N: NDArray[Any]) -> NDArray[np.int64]:
    """Returns where the ``count`` lowest keys are, lowest first: (K,) places in [0, N), all where there are fewer.

    Args:
        count: How many.
        keys_N: (N,) numbers, none of them NaN.
        *ties_N: (N,) what decides between equal keys, the lowest first; then the place does.
    """
    places = np.arange(len(keys_N)) if count >= len(keys_N) else _lowest(count, keys_N, bool(ties_N))
    order = np.lexsort([tie_N[places] for tie_N in reversed((keys_N, *ties_N))])
    return np.asarray(places[order[:count]])


def _lowest(count: int, keys_N: NDArray[Any], with_ties: bool) -> NDArray[np.int64]:
    """Returns places in ascending order, the first ``count`` by key among them."""
    if count == 0:
        return np.empty(0, dtype=np.int64)
    return places_between(0, count, keys_N) if not with_ties else np.flatnonzero(keys_N <= _at(count - 1, keys_N))


def places_between(first: int, last: int, keys_N: NDArray[Any]) -> NDArray[np.int64]:
    """Returns where the keys are that a stable sort puts from ``first`` to before ``last``: places, ascending.

    Args:
        first: At least 0.
        last: Above ``first``, at most N.
        keys_N: (N,) numbers, none of them NaN.
    """
    low, high = _at(first, keys_N), _at(last - 1, keys_N)
    places = np.flatnonzero((keys_N >= low) & (keys_N <= high))
    keys = keys_N[places]
    kept = np.ones(len(places), dtype=np.bool_)
    before = first - int(np.count_nonzero(keys_N < low))  # of those equal to the lowest, these stand before the first
    kept[np.flatnonzero(keys == low)[:before]] = False
    beyond = int(kept.sum()) - (last - first)
    equal = np.flatnonzero((keys == high) & kept)
    kept[equal[len(equal) - beyond :]] = False
    return np.asarray(places[kept])


def _at(rank: int, keys_N: NDArray[Any]) -> Any:
    return np.partition(keys_N, rank)[rank]
