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


def raised(shares_K: Shares, least: float) -> Shares:
    """Returns the shares with those below ``least`` raised to it and the others scaled down to make room: (K,), sum 1.

    Only what is missing moves: where every share is large enough nothing changes, however many sources there are.

    Args:
        shares_K: (K,) sum 1.
        least: From 0 up to, not including, 1 / K.
    """
    low_K = shares_K < least
    raised_K = shares_K
    while low_K.any():  # each round may push another share below: at most K - 1 rounds
        room = 1 - least * low_K.sum()
        rest_K = np.where(low_K, 0.0, shares_K)
        raised_K = np.where(low_K, least, rest_K * (room / rest_K.sum()))
        below_K = low_K | (raised_K < least)
        if (below_K == low_K).all():
            break
        low_K = below_K
    return np.asarray(raised_K)


def log_clipped(log_shares_K: Shares, least: float) -> Shares:
    """Returns the logarithm of max(shares, ``least``), divided by its sum: (K,).

    ADO's floor. The sum is above 1 where a share was raised, so the smallest one ends a little below ``least``.

    Args:
        log_shares_K: (K,) ln shares.
        least: From 0 up to, not including, 1 / K.
    """
    return log_softmax(np.maximum(log_shares_K, logarithm(np.array(least))))


def logarithm(shares_K: Shares) -> Shares:
    """Returns ln shares: (K,), -inf for a share of 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(shares_K))


def log_softmax(logits_K: Shares) -> Shares:
    """Returns ln softmax(logits): (K,), finite for every finite logit, also where the share itself underflows."""
    shifted_K = logits_K - logits_K.max()
    with np.errstate(under="ignore"):
        return np.asarray(shifted_K - np.log(np.exp(shifted_K).sum()))


def log_mixed_with_uniform(log_shares_K: Shares, uniform: float) -> Shares:
    """Returns ln ((1 - u) shares + u / K): (K,), shares of which each is at least u / K, and still of sum 1.

    Args:
        log_shares_K: (K,) ln shares.
        uniform: u, from 0 to 1.
    """
    own, even = logarithm(np.array([1 - uniform, uniform / len(log_shares_K)]))
    return np.asarray(np.logaddexp(own + log_shares_K, even))
