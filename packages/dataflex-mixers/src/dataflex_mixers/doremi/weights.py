"""Domain weights by Group DRO: the update of Algorithm 1 of arXiv 2305.10429."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataflex_mixers.simplex import Shares, mixed_with_uniform, softmax


def ascended(alpha_K: Shares, excess_K: NDArray[np.float64], eta: float, smoothing: float) -> Shares:
    """Returns alpha after a step of exponentiated gradient ascent: (K,), sum 1.

    Args:
        alpha_K: (K,) weights before, above 0.
        excess_K: (K,) lambda, mean clipped excess loss of each source.
        eta: Step size.
        smoothing: c of the paper, the part that is shared out evenly.
    """
    raised_K = softmax(np.log(alpha_K) + eta * excess_K)  # alpha' and its normalisation
    return mixed_with_uniform(raised_K, smoothing)  # alpha_t = (1 - c) alpha' / sum + c u


def entropy(alpha_K: Shares) -> float:
    """Returns the entropy of the weights in nats: ln K for equal ones, near 0 where one source has nearly all."""
    return float(-(alpha_K * np.log(np.maximum(alpha_K, 1e-300))).sum())
