"""The mixture that a regression predicts to be best: the mean of the best of many simulated ones (arXiv 2407.01492).

    w_m ~ Dirichlet(p), m = 1 .. M         p the prior as it is, without the temperature
    mixture = mean of the k simulated ones with the lowest predicted loss

Trees predict the same for many mixtures. Where several share the k-th lowest loss, all of them count in equal parts for
the places that are left; the authors' program takes those that its sort happens to put first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def simulated(prior_K: Array, count: int, seed: int) -> Array:
    """Returns mixtures drawn around the prior: (M, K), sum 1."""
    return np.asarray(np.random.default_rng(seed).dirichlet(prior_K, count))


def mean_of_best(mixtures_MK: Array, predicted_M: Array, best: int) -> Array:
    """Returns the mean of the mixtures with the lowest predictions, ties in equal parts: (K,), whatever their order.

    Args:
        mixtures_MK: (M, K).
        predicted_M: (M,) finite.
        best: k, from 1 to M.
    """
    last = np.partition(predicted_M, best - 1)[best - 1]
    below_M, tied_M = predicted_M < last, predicted_M == last
    weights_M = below_M + tied_M * ((best - below_M.sum()) / tied_M.sum())
    return np.asarray(weights_M @ mixtures_MK / best)
