"""Which clusters to score more rows of, and how many rows of each to train on.

A cluster is an arm of a bandit (ClusterUCB, Wang et al. 2025, arXiv 2506.10288): scoring one of its rows pulls it, and
the score is the reward. What is looked for is the clusters whose rows score highest:

    UCB_c = mean_c + beta std_c sqrt(ln t / n_c)            n_c rows of cluster c scored, t in all

Letters: C clusters, R scored rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataflex_selectors.parts.drawing import relative
from dataflex_selectors.parts.finite_scores import standardised


def next_pulls(
    label_R: NDArray[np.int64], score_R: NDArray[np.floating], left_C: NDArray[np.int64], count: int, beta: float
) -> NDArray[np.int64]:
    """Returns how many more rows of each cluster to score: (C,), ``count`` in all, or as many as are left.

    Rows are scored many at a time, so within one call means and standard deviations stay as they are and only n_c and
    t grow, as if each further row of a cluster had its mean score.

    Args:
        label_R: (R,) clusters of the rows scored so far.
        score_R: (R,) their scores; one that is not finite counts as a pull without a reward.
        left_C: (C,) rows of each cluster that are not scored yet.
        count: How many to give out.
        beta: Weight of the uncertainty of a mean; 0 goes by the means alone.
    """
    clusters = len(left_C)
    pulls_C = np.bincount(label_R, minlength=clusters).astype(np.float64)
    mean_C, std_C = _moments(label_R, score_R, clusters)
    more_C = np.zeros(clusters, dtype=np.int64)
    for total in range(len(label_R), len(label_R) + min(count, int(left_C.sum()))):
        bound_C = mean_C + beta * std_C * np.sqrt(np.log(max(total, 2)) / np.maximum(pulls_C + more_C, 1))
        more_C[np.argmax(np.where(more_C < left_C, bound_C, -np.inf))] += 1
    return more_C


def _moments(
    label_R: NDArray[np.int64], score_R: NDArray[np.floating], clusters: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns mean and standard deviation by cluster; those of all rows where a cluster has too few."""
    known = np.isfinite(score_R)
    label_R, score_R = label_R[known], score_R[known].astype(np.float64)
    counts_C = np.bincount(label_R, minlength=clusters)
    sums_C = np.bincount(label_R, score_R, minlength=clusters)
    mean_C = np.where(counts_C > 0, sums_C / np.maximum(counts_C, 1), score_R.mean() if len(score_R) else 0.0)
    squares_C = np.bincount(label_R, (score_R - mean_C[label_R]) ** 2, minlength=clusters)
    within = float(np.sqrt(squares_C.sum() / max(1, int((counts_C - (counts_C > 0)).sum()))))
    std_C = np.where(counts_C > 1, np.sqrt(squares_C / np.maximum(counts_C - 1, 1)), within)
    return mean_C, std_C


def quotas(
    sizes_C: NDArray[np.int64], score_C: NDArray[np.floating], count: int, temperature: float
) -> NDArray[np.int64]:
    """Returns how many rows of each cluster to take: (C,), ``count`` in all, none more than the cluster has.

    n_c is proportional to sizes_c exp(z_c / temperature), z_c being the cluster's score in standard deviations over
    clusters, so that the temperature means the same whatever the size of scores; what a small cluster lacks is
    taken from the others in the same proportion.

    Args:
        sizes_C: (C,) rows of each cluster that can be taken.
        score_C: (C,) score of each cluster; not looked at where the size is 0.
        count: How many in all, at most the sum of the sizes.
        temperature: Towards 0 all rows of the best cluster are taken, then those of the next. A large one takes rows in
            proportion to the sizes.
    """
    live_C = sizes_C > 0
    z_C = np.zeros(len(sizes_C))
    z_C[live_C] = standardised(score_C[live_C])
    exact_C = np.zeros(len(sizes_C))
    while True:  # ends: each round but the last fills a cluster up
        open_C = live_C & (exact_C < sizes_C)
        missing = count - float(exact_C.sum())
        if missing < 1e-9 or not open_C.any():
            break
        # Relative to the best cluster with rows left: relative to a full one, the shares of the others might all be 0.
        share_C = sizes_C * relative(np.where(open_C, z_C, -np.inf), temperature)
        wanted_C = exact_C + missing * share_C / share_C.sum()
        exact_C = np.minimum(wanted_C, sizes_C)
        if (wanted_C <= sizes_C).all():
            break
    taken_C = np.floor(exact_C + 1e-9).astype(np.int64)
    by_rest = np.argsort(-np.where(taken_C < sizes_C, exact_C - taken_C, -1.0), kind="stable")
    taken_C[by_rest[: count - int(taken_C.sum())]] += 1  # largest remainders
    return taken_C
