"""From mixtures and losses to the mixture: the fit, how good it is on held-out proxies, and the simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataflex_mixers.regmix.best_mixture import mean_of_best, simulated
from dataflex_mixers.regmix.regressors import Array, fitted, rank_correlation


@dataclass(frozen=True)
class Quality:
    """How well the losses of held-out proxies are predicted.

    Attributes:
        rank_correlation: Spearman's; NaN where all predictions, or all losses, are equal.
        error: Mean absolute error, in nats per token.
        error_of_mean: That of the mean loss of the fitted proxies, which knows nothing of mixtures.
    """

    rank_correlation: float
    error: float
    error_of_mean: float


@dataclass(frozen=True)
class Found:
    """What came of the search.

    Attributes:
        shares: The mixture, (K,) sum 1.
        predicted: Its predicted loss, the weighted mean over the targets.
        predicted_mean: The mean predicted loss of all simulated mixtures.
        quality: Target -> quality of its fit; the weighted mean of all targets under :data:`ALL`.
        flat: Whether the regression tells no mixture from another.
    """

    shares: Array
    predicted: float
    predicted_mean: float
    quality: Mapping[str, Quality]
    flat: bool


ALL = "all targets"


@dataclass(frozen=True)
class Fit:
    """How the mixture is found.

    Attributes:
        regressor: One of the names of :mod:`dataflex_mixers.regmix.regressors`.
        simulate: M, mixtures that are predicted.
        top_k: Of these, how many the mixture is the mean of.
        minimum: The least that ``ridge`` adds to a weight.
        seed: Of the simulation.
    """

    regressor: str
    simulate: int
    top_k: int
    minimum: float
    seed: int


def find(
    mixtures_NK: Array,
    losses_NT: Array,
    held_out_N: NDArray[np.bool_],
    targets: Mapping[str, float],
    prior_K: Array,
    fit: Fit,
) -> Found:
    """Returns the mixture with the least predicted loss, by a regression for each target.

    Args:
        mixtures_NK: (N, K) the proxies' mixtures.
        losses_NT: (N, T) their losses.
        held_out_N: (N,) proxies that no fit sees.
        targets: Target -> weight, with sum 1, in the order of T.
        prior_K: (K,) what is simulated around.
        fit: How.
    """
    own_NK, other_NK = mixtures_NK[~held_out_N], mixtures_NK[held_out_N]
    predict = [fitted(fit.regressor, own_NK, losses_NT[~held_out_N, t], fit.minimum) for t in range(len(targets))]
    weights_T = np.array(list(targets.values()))
    told_NT = np.stack([each(other_NK) for each in predict], axis=1)
    truth_NT, mean_T = losses_NT[held_out_N], losses_NT[~held_out_N].mean(axis=0)
    quality = {name: _quality(told_NT[:, t], truth_NT[:, t], float(mean_T[t])) for t, name in enumerate(targets)} | {
        ALL: _quality(told_NT @ weights_T, truth_NT @ weights_T, float(mean_T @ weights_T))
    }
    samples_MK = simulated(prior_K, fit.simulate, fit.seed)
    predicted_M = np.stack([each(samples_MK) for each in predict], axis=1) @ weights_T
    shares_K = mean_of_best(samples_MK, predicted_M, fit.top_k)
    at_best = np.array([each(shares_K[None])[0] for each in predict]) @ weights_T
    flat = bool(np.ptp(predicted_M) <= 1e-12 * abs(float(predicted_M.mean())))
    return Found(shares_K, float(at_best), float(predicted_M.mean()), quality, flat)


def _quality(told_N: Array, truth_N: Array, mean: float) -> Quality:
    error, of_mean = float(np.abs(told_N - truth_N).mean()), float(np.abs(mean - truth_N).mean())
    return Quality(rank_correlation(told_N, truth_N), error, of_mean)


def warnings_of(found: Found, mixtures_NK: Array, losses_N: Sequence[float], names: Sequence[str]) -> list[str]:
    """Returns what speaks against the mixture.

    Args:
        found: It.
        mixtures_NK: (N, K) the proxies' mixtures.
        losses_N: (N,) their losses, the weighted mean over the targets.
        names: The K sources.
    """
    said = []
    if found.flat:
        said.append("the regression predicts one loss for all mixtures: what was found is the prior, and says nothing")
    correlation = found.quality[ALL].rank_correlation
    if not correlation >= _POOR:
        told = "is not defined" if np.isnan(correlation) else f"is {correlation:.2f}"
        said.append(f"the rank correlation on held-out proxies {told}: the fit hardly knows which mixtures are better")
    for k, name in enumerate(names):
        low, high = float(mixtures_NK[:, k].min()), float(mixtures_NK[:, k].max())
        if not low <= found.shares[k] <= high:
            said.append(f"{name} has {found.shares[k]:.3f}, and no proxy more than {high:.3f} or less than {low:.3f}")
    if found.predicted > min(losses_N):
        said.append(f"a proxy has a lower loss ({min(losses_N):.4f}) than is predicted for the mixture")
    return said


_POOR = 0.5
"""A rank correlation below it is said to be poor."""
