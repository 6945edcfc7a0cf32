"""Shares of K sources: non-negative float64 numbers that sum to 1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Shares = NDArray[np.float64]


def softmax(logits_K: Shares, temperature: float = 1.0) -> Shares:
    """Returns exp(logits / temperature) divided by its sum, without overflow: (K,). A logit of -inf gives 0.

    Args:
        logits_K: (K,) numbers or -inf; at least one number.
        temperature: Above 0; towards 0 the highest logit has all.
    """
    with np.errstate(over="ignore", under="ignore"):
        powers_K = np.exp((logits_K - logits_K.max()) / temperature)
    shares_K: Shares = powers_K / powers_K.sum()
    return shares_K


def mixed_with_uniform(shares_K: Shares, uniform: float) -> Shares:
    """Returns (1 - u) shares + u / K: (K,), each at least u / K, and still of sum 1. u lies in [0, 1]."""
    mixed_K: Shares = (1 - uniform) * shares_K + uniform / len(shares_K)
    return mixed_K


def with_floor(shares_K: Shares, least: float) -> Shares:
    """Returns shares of which each is at least ``least``, below 1 / K: (K,), mixed with uniform, sum 1."""
    return mixed_with_uniform(shares_K, least * len(shares_K))
