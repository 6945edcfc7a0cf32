"""How many rows of each cluster are chosen: many of one that is like the others and whose rows differ.

    S_i = mean cosine of the centroid of cluster i with those of the others     transferability; arXiv 2406.10995, eq. 5
    P_i = exp(S_i / (T D_i)) / sum_j exp(S_j / (T D_j))                         D: density; equation 6

The authors' program leaves cosines above 0.9 out of the mean, and hands rows out cluster by cluster, the largest share
first: each cluster is asked for its share of what is left among those that come after it. OpenDCAI/DataFlex keeps all
cosines, and rounds by largest remainder.

Letters: C clusters, D features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TOO_ALIKE = 0.9
"""Cosine above which the authors take two clusters for one."""

_UNDERFLOW = -600.0  # exp of it has all of its digits, and so has a sum of such numbers
_CELLS = 2**22  # cosines at a time: 32 MB


def transferability(centroids_CD: NDArray[np.floating], alike: float | None) -> NDArray[np.float64]:
    """Returns S of each cluster: (C,).

    A cluster that is too much like all others has the mean over all others, and a single one has 0; the authors'
    program divides 0 by 0 there.

    Args:
        centroids_CD: (C, D) finite means of the clusters' rows, of any length.
        alike: Cosines above it are left out of the mean; None for none.
    """
    unit_CD = centroids_CD.astype(np.float64)
    unit_CD /= np.linalg.norm(unit_CD, axis=1, keepdims=True).clip(min=1e-12)
    found_C = np.empty(len(unit_CD))
    step = max(1, _CELLS // len(unit_CD))
    for start in range(0, len(unit_CD), step):
        cosines_bC = unit_CD[start : start + step] @ unit_CD.T
        others_bC = np.ones(cosines_bC.shape, dtype=np.bool_)
        others_bC[np.arange(len(others_bC)), start + np.arange(len(others_bC))] = False
        kept_bC = others_bC if alike is None else others_bC & (cosines_bC <= alike)
        kept_bC = np.where(kept_bC.any(axis=1, keepdims=True), kept_bC, others_bC)
        sums_b = np.where(kept_bC, cosines_bC, 0.0).sum(axis=1)
        found_C[start : start + step] = sums_b / kept_bC.sum(axis=1).clip(min=1)
    return found_C


def counts_in_turn(
    scores_C: NDArray[np.floating], room_C: NDArray[np.int64], total: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns how many rows each cluster gives, and the clusters in turn: (C,) twice. The counts sum to ``total``.

    The largest share comes first, of equal ones the higher number. A cluster is asked for its share, in the softmax
    over those that are left, of the rows that are left, rounded half to even, and gives what it has. What is missing at
    the end is handed out again over the clusters that have room; the authors' program then gives fewer rows.

    Args:
        scores_C: (C,) S / (T D), finite.
        room_C: (C,) rows that each can give.
        total: How many are wanted, at most ``room_C.sum()``.
    """
    order_C = np.argsort(scores_C, kind="stable")[::-1]
    counts_C = np.zeros(len(scores_C), dtype=np.int64)
    while (left := total - int(counts_C.sum())) > 0:
        open_C = order_C[counts_C[order_C] < room_C[order_C]]
        for cluster, share in zip(open_C.tolist(), shares_of_rest(scores_C[open_C]).tolist(), strict=True):
            given = min(round(left * share), int(room_C[cluster] - counts_C[cluster]))
            counts_C[cluster] += given
            left -= given
    return counts_C, order_C


def shares_of_rest(scores_O: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns the share of each cluster in the softmax over itself and those after it: (O,), the last one being 1.

    A stretch of clusters has one sum of powers, so that 100,000 clusters take a fraction of a second; where powers
    become too small for that, the next stretch begins.

    Args:
        scores_O: (O,) finite scores, descending.
    """
    shares_O, first = np.empty(len(scores_O)), 0
    while first < len(scores_O):
        below_R = scores_O[first:].astype(np.float64) - scores_O[first]
        count = int(np.count_nonzero(below_R >= _UNDERFLOW))
        powers_R = np.exp(below_R)
        rest_R = np.cumsum(powers_R[::-1])[::-1]
        shares_O[first : first + count] = powers_R[:count] / rest_R[:count]
        first += count
    return shares_O


def counts_by_remainder(scores_C: NDArray[np.floating], room_C: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Returns how many rows each cluster gives: (C,), summing to ``total``.

    Shares are rounded down, and what is left goes to the largest fractions, of equal ones to the lower number. What a
    cluster has no room for is shared out again over those that have.

    Args:
        scores_C: (C,) S / (T D), finite.
        room_C: (C,) rows that each can give.
        total: How many are wanted, at most ``room_C.sum()``.
    """
    counts_C = np.zeros(len(scores_C), dtype=np.int64)
    while (left := total - int(counts_C.sum())) > 0:
        open_C = np.flatnonzero(counts_C < room_C)
        wanted_O = softmax(scores_C[open_C]) * left
        given_O = np.minimum(np.floor(wanted_O).astype(np.int64), room_C[open_C] - counts_C[open_C])
        has_room_O = given_O < room_C[open_C] - counts_C[open_C]
        order_O = np.argsort(-(wanted_O - np.floor(wanted_O)), kind="stable")
        given_O[order_O[has_room_O[order_O]][: left - int(given_O.sum())]] += 1
        counts_C[open_C] += given_O
    return counts_C


def softmax(scores_C: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns exp(s) / sum exp(s): (C,) float64; the largest is taken off first, so that none is infinite."""
    powers_C = np.exp(scores_C.astype(np.float64) - scores_C.max())
    return np.asarray(powers_C / powers_C.sum())
