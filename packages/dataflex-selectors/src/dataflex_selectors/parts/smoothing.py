"""From the scores of a few rows to those of all rows: each takes a mean of the scored rows near it.

    s_i = sum_r k(x_i, x_r) s_r / sum_r k(x_i, x_r),    k = exp(cos(x_i, x_r) / width)

The sum goes over the scored rows of the two clusters nearest to row i, so that a row at the border of its cluster is
compared with rows on both sides of it (Nadaraya-Watson regression). A row that was scored keeps its own score.

Letters: N rows, B of a block, R scored rows, J target sets, C clusters, K nearest clusters of a row (2, or 1), M scored
rows of a cluster, D features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_NUMBERS = 2**24  # features gathered at a time: 64 MB


def smoothed(
    vectors_ND: NDArray[np.floating],
    nearest_NK: NDArray[np.int64],
    scored_R: NDArray[np.int64],
    scores_RJ: NDArray[np.floating],
    width: float,
) -> NDArray[np.float64]:
    """Returns a score for each row and set: (N, J), NaN for a row none of whose two clusters has a score.

    Args:
        vectors_ND: (N, D) vectors of length 1.
        nearest_NK: (N, K) the nearest clusters of each row, its own first.
        scored_R: (R,) the rows that were scored.
        scores_RJ: (R, J) their scores; a row with one that is no finite number is not used.
        width: Width of the kernel; towards 0 the nearest scored row alone counts.
    """
    usable_R = np.isfinite(scores_RJ).all(axis=1)
    scored_R, scores_RJ = scored_R[usable_R], scores_RJ[usable_R].astype(np.float64)
    members_CM = _by_cluster(nearest_NK[scored_R, 0], int(nearest_NK.max()) + 1)
    smoothed_NJ = np.full((len(vectors_ND), scores_RJ.shape[1]), np.nan)
    if not len(scored_R):
        return smoothed_NJ
    scored_RD = vectors_ND[scored_R].astype(np.float32)
    per_row = nearest_NK.shape[1] * members_CM.shape[1] * vectors_ND.shape[1]
    step = max(1, _NUMBERS // per_row)
    for start in range(0, len(vectors_ND), step):
        block = slice(start, start + step)
        places_BM = members_CM[nearest_NK[block]].reshape(len(nearest_NK[block]), -1)
        cosines_BM = np.einsum("bd,bmd->bm", vectors_ND[block].astype(np.float32), scored_RD[places_BM])
        cosines_BM = np.where(places_BM >= 0, cosines_BM.astype(np.float64), -np.inf)
        some_B = (places_BM >= 0).any(axis=1)
        with np.errstate(over="ignore", under="ignore"):  # far from the nearest, a weight is 0
            weights_BM = np.exp((cosines_BM[some_B] - cosines_BM[some_B].max(axis=1, keepdims=True)) / width)
        weights_BM /= weights_BM.sum(axis=1, keepdims=True)
        smoothed_NJ[start + np.flatnonzero(some_B)] = np.einsum("bm,bmj->bj", weights_BM, scores_RJ[places_BM[some_B]])
    smoothed_NJ[scored_R] = scores_RJ
    return smoothed_NJ


def _by_cluster(label_R: NDArray[np.int64], clusters: int) -> NDArray[np.int64]:
    """Returns the places in [0, R) of each cluster's rows: (C, M), filled up with -1."""
    counts_C = np.bincount(label_R, minlength=clusters)
    members_CM = np.full((clusters, max(1, int(counts_C.max(initial=0)))), -1, dtype=np.int64)
    order = np.argsort(label_R, kind="stable")
    place_in_cluster = np.arange(len(order)) - np.repeat(np.cumsum(counts_C) - counts_C, counts_C)
    members_CM[label_R[order], place_in_cluster] = order
    return members_CM
