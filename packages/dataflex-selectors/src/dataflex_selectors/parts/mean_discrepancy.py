"""Rows that stand for a group: at each turn the row that brings the chosen ones nearest to the whole group.

    k(x, y) = exp(-|x - y|^2 / (2 g^2))                                      g is the bandwidth
    D       = mean of k over all pairs                                       density; near 1: rows are alike
    MMD^2   = mean k(all, all) + mean k(S, S) - 2 mean k(all, S)             arXiv 2406.10995, equation 7
    next    = argmin over the rows outside of S of the MMD^2 of S with the row added

The order is found once for all rows of the group: its first m rows are the choice of m. In float64, as the authors'
program does; rows whose MMD^2 differs by rounding alone are taken in row order.

Cost: 2 n^2 D multiplications. Memory: the vectors' own, a few blocks of 64 MB, and the kernel where it takes 64 MB at
most (2,896 rows); of a larger group the kernel of a chosen row with all others is computed again when it is chosen, and
memory is linear in n.

Letters: n rows of the group, b rows of a block, D features.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_CELLS = 2**23  # numbers of a kernel that is kept, or of a block of vectors: 64 MB
_ROUNDING = 1e-12  # of a sum of means that are at most 1


def gaussian_kernel(
    vectors_bD: NDArray[np.floating], others_nD: NDArray[np.floating], bandwidth: float
) -> NDArray[np.float64]:
    """Returns exp(-|x - y|^2 / (2 g^2)) of each pair: (b, n) float64.

    Args:
        vectors_bD: (b, D) finite vectors; few, as they are copied.
        others_nD: (n, D) finite vectors, gone through in blocks.
        bandwidth: g, above 0.
    """
    own_bD = vectors_bD.astype(np.float64)
    lengths_b = np.einsum("bd,bd->b", own_bD, own_bD)
    found_bn = np.empty((len(own_bD), len(others_nD)))
    step = max(1, _CELLS // max(1, others_nD.shape[1]))
    for start in range(0, len(others_nD), step):
        part_cD = others_nD[start : start + step].astype(np.float64)
        lengths_c = np.einsum("cd,cd->c", part_cD, part_cD)
        found_bc = found_bn[:, start : start + step]
        found_bc[:] = own_bD @ part_cD.T
        found_bc *= -2
        found_bc += lengths_c
        found_bc += lengths_b[:, None]  # |x|^2 + |y|^2 - 2 x.y
        np.maximum(found_bc, 0, out=found_bc)
        found_bc /= -2 * bandwidth**2
        np.exp(found_bc, out=found_bc)
    return found_bn


class KernelGroup:
    """The kernel of a group of rows with each other.

    Args:
        vectors_nD: (n, D) finite vectors, n >= 1.
        bandwidth: g of the kernel, above 0.

    Attributes:
        means_n: (n,) mean of the kernel of each row with all rows, itself among them.
    """

    def __init__(self, vectors_nD: NDArray[np.floating], bandwidth: float) -> None:
        self._vectors_nD, self._bandwidth = vectors_nD, bandwidth
        size, width = vectors_nD.shape
        self._whole_nn = np.empty((size, size)) if size * size <= _CELLS else None
        self.means_n = np.empty(size)
        step = max(1, _CELLS // max(size, width))
        for start in range(0, size, step):
            block_bn = gaussian_kernel(vectors_nD[start : start + step], vectors_nD, bandwidth)
            self.means_n[start : start + step] = block_bn.mean(axis=1)
            if self._whole_nn is not None:
                self._whole_nn[start : start + step] = block_bn

    def row(self, place: int) -> NDArray[np.float64]:
        """Returns the kernel of one row with all rows: (n,)."""
        if self._whole_nn is not None:
            return np.asarray(self._whole_nn[place])
        found_1n = gaussian_kernel(self._vectors_nD[place : place + 1], self._vectors_nD, self._bandwidth)
        return found_1n.reshape(-1)

    def density(self, with_itself: bool, single: float = 1.0) -> float:
        """Returns the mean of the kernel over pairs of rows.

        Args:
            with_itself: Whether a row and itself are a pair, which always has the kernel 1.
            single: The density of a group of one row.
        """
        size = len(self.means_n)
        if size == 1:
            return single
        mean = float(self.means_n.mean())
        return mean if with_itself else (mean * size - 1) / (size - 1)


def greedy_order(
    group: KernelGroup, count: int | None = None, seen: Callable[[float], None] | None = None
) -> NDArray[np.int64]:
    """Returns the rows of a group in the order in which they are chosen: (m,) places.

    Args:
        group: The kernel of the group.
        count: How many, m; None for all.
        seen: Is given the MMD^2 after each choice.
    """
    means_n = group.means_n
    size, whole = len(means_n), float(means_n.mean())
    inside = 0.0  # sum of the kernel over the pairs of chosen rows
    with_chosen_n = np.zeros(size)  # sum of the kernel with the chosen rows
    outside_n = np.ones(size, dtype=np.bool_)
    order = np.empty(min(count if count is not None else size, size), dtype=np.int64)
    across = 0.0  # sum of the means of the chosen rows
    for turn in range(len(order)):
        t = turn + 1
        squares_n = whole + (inside + 2 * with_chosen_n + 1) / t**2 - 2 * (across + means_n) / t  # k(x, x) = 1
        squares_n[~outside_n] = np.inf
        place = int(np.argmax(squares_n <= squares_n.min() + _ROUNDING))
        if seen is not None:
            seen(float(squares_n[place]))
        inside += 2 * with_chosen_n[place] + 1
        across += means_n[place]
        with_chosen_n += group.row(place)
        outside_n[place] = False
        order[turn] = place
    return order
