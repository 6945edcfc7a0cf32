"""Rows that are near copies of rows before them, in a given order: which to leave out.

    m_i   = max over j < i of x_i . x_j                      how near the nearest earlier row is, left out or not
    taken = i is taken if near(x_i, x_j) for no taken j < i  a walk: only rows that were taken keep others out

All products are of blocks of rows with blocks of rows; what a block holds is compared with each other in turn, one row
after another. Memory is that of the vectors and of a block of products, not N x N.

Cosines are products of float32 vectors of length 1 and at most 1: rounding makes no copy nearer than itself. Pairs
within 1e-6 of a threshold may fall on either side of it.

Letters: N rows, D features, B rows of a block, T rows taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from dataflex.utils.progress import Progress
from numpy.typing import NDArray

Near = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``near(rows_BD, others_TD) -> (B, T) bool``: which pairs are too near each other."""

_ROWS = 512  # of a block that is walked
_OTHERS = 8192  # rows that a block is compared with at a time: 16 MB of cosines


def cosines(rows_BD: torch.Tensor, others_TD: torch.Tensor) -> torch.Tensor:
    """Returns the cosines of vectors of length 1: (B, T), at most 1."""
    return (rows_BD @ others_TD.T).clamp_(max=1.0)


def cosine_above(threshold: float) -> Near:
    """Returns a test for pairs whose cosine is above ``threshold``."""
    return lambda rows_BD, others_TD: cosines(rows_BD, others_TD) > threshold


def manhattan_below(threshold: float) -> Near:
    """Returns a test for pairs whose Manhattan distance, sum_d |x_d - y_d|, is below ``threshold``."""
    return lambda rows_BD, others_TD: torch.cdist(rows_BD, others_TD, p=1.0) < threshold


def nearest_earlier(vectors_ND: NDArray[np.float32], device: torch.device | None = None) -> NDArray[np.float32]:
    """Returns the largest cosine of each row with a row before it, at least 0: (N,); 0 for the first.

    Args:
        vectors_ND: (N, D) vectors of length 1, in the order that decides which of two rows is the earlier.
        device: Where products are computed; None for the CPU.
    """
    vectors = torch.from_numpy(np.ascontiguousarray(vectors_ND)).to(device or "cpu")
    found_N = torch.zeros(len(vectors), device=vectors.device)
    for start in range(0, len(vectors), _ROWS):
        rows = vectors[start : start + _ROWS]
        best_B = found_N[start : start + _ROWS]
        for first in range(0, start, _OTHERS):
            others = vectors[first : min(first + _OTHERS, start)]
            torch.maximum(best_B, cosines(rows, others).amax(1), out=best_B)
        if len(rows) > 1:
            earlier_BB = cosines(rows, rows).tril(-1)  # the others are 0, the least that counts
            torch.maximum(best_B, earlier_BB.amax(1), out=best_B)
    return found_N.cpu().numpy()


def walked_apart(
    vectors_ND: Any,
    order_M: NDArray[np.int64],
    near: Near,
    most: int | None = None,
    before_K: NDArray[np.int64] | None = None,
    device: torch.device | None = None,
    desc: str = "",
) -> NDArray[np.int64]:
    """Returns the rows that a walk takes, in its order: (T,) of the M rows of ``order_M``.

    A row is taken where no row that was taken before it is near. The first row is always taken, unless one of
    ``before_K`` is near.

    Args:
        vectors_ND: (N, D) float32 vectors; what gives an array for an array of row numbers is enough.
        order_M: (M,) the rows to walk over, each once.
        near: Which pairs are too near each other.
        most: The walk ends when so many rows are taken; None for no end.
        before_K: (K,) rows that count as taken before the walk begins; None for none.
        device: Where rows are compared; None for the CPU.
        desc: What a progress bar says; blank for no bar.
    """
    taken = _Taken(vectors_ND, device or torch.device("cpu"))
    for start in range(0, 0 if before_K is None else len(before_K), _ROWS):
        assert before_K is not None
        taken.add(taken.read(before_K[start : start + _ROWS]))
    found: list[NDArray[np.int64]] = []
    left = len(order_M) if most is None else most
    with Progress(desc, len(order_M), shown=bool(desc)) as progress:
        for start in range(0, len(order_M), _ROWS):
            if left <= 0:
                break
            rows_B = order_M[start : start + _ROWS]
            chosen, vectors = _of_block(taken, taken.read(rows_B), near, left)
            taken.add(vectors)
            found.append(rows_B[chosen])
            left -= len(chosen)
            progress.done(len(rows_B))
    return np.concatenate([np.empty(0, dtype=np.int64), *found])


def _of_block(taken: _Taken, rows_BD: torch.Tensor, near: Near, most: int) -> tuple[NDArray[np.int64], torch.Tensor]:
    """Returns which rows of a block are taken, and their vectors."""
    open_B = torch.arange(len(rows_BD), device=rows_BD.device)
    for others_TD in taken.parts():
        open_B = open_B[~near(rows_BD[open_B], others_TD).any(dim=1)]
        if not len(open_B):
            break
    close_BB = near(rows_BD[open_B], rows_BD[open_B]).cpu().numpy() if len(open_B) else np.empty((0, 0), dtype=np.bool_)
    out_B = np.zeros(len(open_B), dtype=np.bool_)
    chosen: list[int] = []
    for place in range(len(open_B)):
        if out_B[place]:
            continue
        chosen.append(place)
        if len(chosen) == most:
            break
        out_B |= close_BB[place]
    places = open_B[torch.tensor(chosen, dtype=torch.int64, device=open_B.device)]
    return places.cpu().numpy(), rows_BD[places]


class _Taken:
    """The vectors of the rows that were taken, in one array that grows."""

    def __init__(self, vectors_ND: Any, device: torch.device) -> None:
        self._vectors, self._device = vectors_ND, device
        self._held, self._count = torch.empty((0, 0), device=device), 0

    def read(self, rows_B: NDArray[np.int64]) -> torch.Tensor:
        """Returns the vectors of some rows: (B, D)."""
        return torch.from_numpy(np.ascontiguousarray(self._vectors[rows_B], dtype=np.float32)).to(self._device)

    def add(self, vectors_BD: torch.Tensor) -> None:
        """Adds rows that are taken."""
        after = self._count + len(vectors_BD)
        if after > len(self._held):
            room = torch.empty((max(after, 2 * len(self._held)), vectors_BD.shape[1]), device=self._device)
            if self._count:
                room[: self._count] = self._held[: self._count]
            self._held = room
        self._held[self._count : after] = vectors_BD
        self._count = after

    def parts(self) -> Any:
        """Yields the vectors, a part after the other."""
        for start in range(0, self._count, _OTHERS):
            yield self._held[start : min(start + _OTHERS, self._count)]
