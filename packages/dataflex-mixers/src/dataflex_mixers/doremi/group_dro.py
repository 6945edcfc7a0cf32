"""Weights of sources by Group DRO: the update of Algorithm 1 of arXiv 2305.10429."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataflex_mixers.parts.simplex import Shares, log_mixed_with_uniform, log_softmax


def ascended(log_alpha_K: Shares, excess_K: NDArray[np.float64], eta: float, smoothing: float) -> Shares:
    """Returns ln alpha after a step of exponentiated gradient ascent: (K,).

    Logarithms are kept: without smoothing, a weight that falls by the same factor in each step underflows soon, and its
    logarithm does not.

    Args:
        log_alpha_K: (K,) ln alpha before.
        excess_K: (K,) lambda, mean clipped excess loss of each source.
        eta: Step size.
        smoothing: c of the paper, the part that is shared out evenly.
    """
    log_raised_K = log_softmax(log_alpha_K + eta * excess_K)  # alpha' and its normalisation
    return log_mixed_with_uniform(log_raised_K, smoothing)  # alpha_t = (1 - c) alpha' / sum + c u


def entropy(alpha_K: Shares) -> float:
    """Returns the entropy of the weights in nats: ln K for equal ones, near 0 where one source has nearly all."""
    return float(-(alpha_K * np.log(np.maximum(alpha_K, 1e-300))).sum())
