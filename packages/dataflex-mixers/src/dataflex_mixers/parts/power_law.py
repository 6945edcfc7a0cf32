"""Scaling laws of training losses: L(n) = epsilon + beta n^(-alpha), fitted in log space.

As in "Adaptive Data Optimization", arXiv 2410.11820, appendix: Huber loss with delta 1e-3 between log L and
logaddexp(log beta - alpha log n, log epsilon), L-BFGS from a grid of starts, the best kept. Two things differ. The
limits on the parameters are bounds of the optimizer, not penalties. And the objective is computed at all 336 starts,
but only the best few, and the fit before, are refined: a fit of 1000 points takes hundredths of a second, not seconds.

Letters: P points, G starts.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, minimize  # type: ignore[import-untyped]
from scipy.signal import savgol_filter  # type: ignore[import-untyped]

Array = NDArray[np.float64]

DELTA = 1e-3
ALPHA = (0.001, 0.8)
LOG_BETA_MOST = 6.5
LOG_EPSILON_LEAST = 0.5
_STARTS = np.array(
    list(itertools.product(np.arange(-2.0, 6.0), (-2.0, -1.5, -1.0, -0.5, 1.0, 1.5), np.arange(0.1, 0.75, 0.1)))
)  # (G, 3): log beta, log epsilon, alpha
_REFINED = 8


def fit_power_law(counts_P: Array, losses_P: Array, before: Array | None = None) -> Array:
    """Returns (3,): log beta, log epsilon, alpha.

    Epsilon is at least e^0.5, as in the paper, or half the least loss where losses come below twice that.

    Args:
        counts_P: (P,) n, above 0 and not all equal.
        losses_P: (P,) losses above 0.
        before: The parameters of the fit before, as one more start.
    """
    log_n, log_loss = np.log(counts_P), np.log(losses_P)
    least = min(LOG_EPSILON_LEAST, float(log_loss.min()) - np.log(2))
    low = np.array([-np.inf, least, ALPHA[0]])
    high = np.array([LOG_BETA_MOST, np.inf, ALPHA[1]])
    starts_G3 = _STARTS if before is None else np.vstack([before, _STARTS])
    starts_G3 = np.clip(starts_G3, low, high)
    values_G = np.array([_objective(start, log_n, log_loss)[0] for start in starts_G3])
    chosen = list(np.argsort(values_G, kind="stable")[:_REFINED])
    if before is not None and 0 not in chosen:
        chosen.append(0)
    found = [
        minimize(_objective, starts_G3[i], (log_n, log_loss), method="L-BFGS-B", jac=True, bounds=Bounds(low, high))
        for i in chosen
    ]
    best: Array = min(found, key=lambda result: float(result.fun)).x
    return best


def predicted(params_K3: Array, count: float) -> Array:
    """Returns L(n) of each law: (K,)."""
    log_beta, log_epsilon, alpha = params_K3.T
    return np.asarray(np.exp(log_epsilon) + np.exp(log_beta - alpha * np.log(count)))


def learning_speed(params_K3: Array, count: float) -> Array:
    """Returns -dL/dn of each law: (K,), above 0. See :func:`log_learning_speed`."""
    return np.asarray(np.exp(log_learning_speed(params_K3, count)))


def log_learning_speed(params_K3: Array, count: float, least_alpha: float = 0.0) -> Array:
    """Returns the logarithm of -dL/dn of each law: (K,). -dL/dn = alpha (L - epsilon) / n, section 3.2.

    Args:
        params_K3: (K, 3) what :func:`fit_power_law` returned for each source.
        count: n.
        least_alpha: Least value of the factor alpha, a lower one is raised to it; L stays that of the law.
    """
    log_beta, _, alpha = params_K3.T
    log_factor = np.log(np.maximum(alpha, least_alpha))
    return np.asarray(log_factor + log_beta - (alpha + 1) * np.log(count))  # L - epsilon = beta n^-alpha


def smoothed(losses_TK: Array, window: int) -> Array:
    """Returns the losses after a Savitzky-Golay filter of order 3 over time: (T, K); unchanged where T < 5.

    Args:
        losses_TK: (T, K) one row per step.
        window: Its width in steps; odd, and reduced to T where there are fewer.
    """
    width = min(window, len(losses_TK) - 1 + len(losses_TK) % 2)
    return losses_TK if width < 5 else np.asarray(savgol_filter(losses_TK, width, 3, axis=0))


def _objective(params: Array, log_n: Array, log_loss: Array) -> tuple[float, Array]:
    """Returns the mean Huber loss over P points, in units of delta^2, and its gradient."""
    log_beta, log_epsilon, alpha = params
    falling = log_beta - alpha * log_n
    log_fit = np.logaddexp(falling, log_epsilon)
    residual = log_fit - log_loss
    small = np.abs(residual) <= DELTA
    value = np.where(small, residual**2 / 2, DELTA * (np.abs(residual) - DELTA / 2)).mean() / DELTA**2
    slope = np.clip(residual, -DELTA, DELTA) / (len(residual) * DELTA**2)
    part = slope * np.exp(falling - log_fit)  # d log_fit / d falling, in (0, 1)
    return float(value), np.array([part.sum(), slope.sum() - part.sum(), -(part * log_n).sum()])
