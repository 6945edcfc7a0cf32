"""The mixtures of the proxies: Dirichlet draws around a prior, of many strengths, rounded and distinct.

Liu et al., "RegMix: Data Mixture as Regression for Language Model Pre-training" (ICLR 2025), arXiv 2407.01492. Letters:
N mixtures, K sources, S strengths.

    q = p^T / sum p^T                           the prior, flattened by the temperature
    w ~ Dirichlet(s q)                          s one of S strengths, evenly spaced in its logarithm, chosen at random
    refused where some w_k > min(1, u p_k)      u, how often a source may be used, of the prior before the temperature
    w_k := 0 where w_k < m, divided by the sum, rounded to multiples of m
    w equal to one that was drawn before is left out

Mixtures come in the order of drawing, so that more of them are the same ones and further ones. The authors draw a fixed
number of candidates, sort them and choose at random.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from dataflex.core.errors import ConfigError
from numpy.typing import NDArray

Array = NDArray[np.float64]
STRENGTHS = 15
SAME = 1e-5
"""Two mixtures are one where their weights differ by no more than this in all."""
_RARE = 0.2  # share of the proxies that have a source, below which it is said to be rare
_CHUNK = 1024  # candidates of a round
_MOST_ROUNDS = 100  # without enough mixtures after so many, the bounds leave too little


@dataclass(frozen=True)
class Drawing:
    """How mixtures are drawn.

    Attributes:
        temperature: T, the exponent of the prior: 1 keeps it, towards 0 it becomes equal shares.
        min_strength: The smallest strength: near 0 a mixture is nearly one source.
        max_strength: The largest strength: a large one stays near the prior.
        max_usage: u, how many times its prior a source may have; None for no bound.
        minimum: m, the least weight but 0, and the step of the weights.
    """

    temperature: float = 0.5
    min_strength: float = 0.1
    max_strength: float = 5.0
    max_usage: float | None = 15.0
    minimum: float = 2e-4


def tempered(prior_K: Array, temperature: float) -> Array:
    """Returns the prior raised to the temperature, with sum 1: (K,)."""
    powers_K: Array = prior_K**temperature
    return np.asarray(powers_K / powers_K.sum())


def bounds(prior_K: Array, max_usage: float | None) -> Array:
    """Returns the largest weight of each source, by the prior before the temperature: (K,)."""
    return np.ones_like(prior_K) if max_usage is None else np.minimum(1.0, max_usage * prior_K)


def concentrations(prior_K: Array, drawing: Drawing) -> Array:
    """Returns the parameters of the Dirichlet distribution for each strength, rising: (S, K); one row for one."""
    low, high = drawing.min_strength, drawing.max_strength
    strengths_S = np.logspace(np.log10(low), np.log10(high), STRENGTHS) if low < high else np.array([low])
    return np.asarray(strengths_S[:, None] * tempered(prior_K, drawing.temperature))


def accepted(candidates_NK: Array, bounds_K: Array, minimum: float) -> Array:
    """Returns the candidates within the bounds, rounded: (n, K).

    Their sums can miss 1 a little and a bound can be passed by half a step: rounding comes last.
    """
    kept_NK = candidates_NK[~(candidates_NK > bounds_K).any(axis=1)]
    kept_NK = np.where(kept_NK < minimum, 0.0, kept_NK)
    kept_NK = kept_NK / kept_NK.sum(axis=1, keepdims=True)
    return np.asarray(np.round(kept_NK / minimum) * minimum)


def distinct(mixtures_NK: Array, same: float = SAME) -> NDArray[np.int64]:
    """Returns which mixtures are left when each that is the same as another is dropped: (n,), sorted by last source.

    Sorted by the last source, then the one before it, a mixture is dropped where it is the same as the last one kept.
    """
    kept: list[int] = []
    for row in np.lexsort(mixtures_NK.T):  # stable: of equal ones the first stays
        if not kept or np.abs(mixtures_NK[row] - mixtures_NK[kept[-1]]).sum() > same:
            kept.append(int(row))
    return np.array(kept, dtype=np.int64)


def drawn(prior_K: Array, count: int, drawing: Drawing, seed: int) -> Array:
    """Returns the mixtures of the proxies, each with sum 1: (N, K). The first N of a larger count are the same.

    Args:
        prior_K: (K,) above 0, sum 1.
        count: N.
        drawing: How.
        seed: Of this draw alone.

    Raises:
        ConfigError: The bounds and the step leave fewer mixtures; the message says how many were found.
    """
    rng = np.random.default_rng(seed)
    alphas_SK, limits_K = concentrations(prior_K, drawing), bounds(prior_K, drawing.max_usage)
    same = min(SAME, drawing.minimum / 2)  # less than a step: a later mixture never takes the place of an earlier one
    found_NK = np.empty((0, len(prior_K)))
    within = 0
    for _ in range(_MOST_ROUNDS):
        strengths_N = rng.integers(len(alphas_SK), size=_CHUNK)
        candidates_NK = np.stack([rng.dirichlet(alphas_SK[s]) for s in strengths_N])
        rounded_NK = accepted(candidates_NK, limits_K, drawing.minimum)
        within += len(rounded_NK)
        found_NK = np.concatenate([found_NK, rounded_NK])
        found_NK = found_NK[np.sort(distinct(found_NK, same))]
        if len(found_NK) >= count:
            found_NK = found_NK[:count]
            return np.asarray(found_NK / found_NK.sum(axis=1, keepdims=True))
    raise ConfigError(
        f"{count} mixtures are asked for, and of {_CHUNK * _MOST_ROUNDS:,} candidates {within:,} are within max_usage, "
        f"{len(found_NK):,} of them distinct -> ask for fewer, raise max_usage or max_strength, or lower minimum"
    )


def rare_sources(mixtures_NK: Array, limits_K: Array, names: Sequence[str]) -> Iterator[str]:
    """Yields a sentence for each source that few proxies have: of a small prior most mixtures have nothing.

    Args:
        mixtures_NK: (N, K).
        limits_K: (K,) what :func:`bounds` returned.
        names: The K sources.
    """
    for k, name in enumerate(names):
        own = int((mixtures_NK[:, k] > 0).sum())
        if own < _RARE * len(mixtures_NK):
            yield (
                f"{name} is in {own} of {len(mixtures_NK)} proxies, and can have {limits_K[k]:.2g} at most: what it is "
                "worth can hardly be told -> raise max_usage or min_strength, lower temperature, or raise its prior"
            )
