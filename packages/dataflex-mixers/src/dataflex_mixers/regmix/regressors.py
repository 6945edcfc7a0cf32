"""Losses of proxies as a function of their mixtures. Letters: N mixtures, K sources.

`lightgbm`   boosted trees with the settings of RegMix's authors: squared error, 1000 rounds at most, learning rate 0.01
`linear`     y = a + sum_k b_k w_k, least squares; the paper's baseline
`ridge`      y = a + sum_k b_k ln(w_k + c), ridge regression; c and the penalty of the least leave-one-out error

How many rounds the trees have is found by leaving out a fifth of the fitted mixtures at a time, and never by those that
the quality is told by: the authors stop by the same mixtures that they report the correlation on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Predict = Callable[[Array], Array]
"""Mixtures (n, K) -> predicted losses (n,)."""

LIGHTGBM, LINEAR, RIDGE = "lightgbm", "linear", "ridge"
REGRESSORS = (LIGHTGBM, LINEAR, RIDGE)
ROUNDS, PATIENCE = 1000, 3
FOLDS = 5
LEAST_OF_TREES = 50
"""Mixtures to fit on from which on a tree can split: 20 on each side, in four of five folds."""
_TREES: dict[str, Any] = {
    "objective": "regression",
    "boosting_type": "gbdt",
    "metric": ["l1", "l2"],
    "learning_rate": 0.01,
    "seed": 42,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,  # the same sums on every machine; a fit takes less than a second
    "verbosity": -1,
}
_PENALTIES = np.logspace(-6, 3, 37)
_OFFSETS = (1e-3, 1e-2, 3e-2, 0.1, 0.3)
"""c of ``ridge``, beside the least weight that a proxy may have."""


def fitted(name: str, mixtures_NK: Array, losses_N: Array, minimum: float) -> Predict:
    """Returns a regression of losses on mixtures.

    Args:
        name: One of :data:`REGRESSORS`.
        mixtures_NK: (N, K).
        losses_N: (N,) finite.
        minimum: The least c of ``ridge``, what is added to a weight.
    """
    if name == LINEAR:
        return linear(mixtures_NK, losses_N)
    if name == RIDGE:
        return ridge(mixtures_NK, losses_N, minimum)
    return trees(mixtures_NK, losses_N)


def linear(mixtures_NK: Array, losses_N: Array) -> Predict:
    """Returns the least-squares plane, which is unique though intercept and slopes are not: weights sum to 1."""
    slopes_K, *_ = np.linalg.lstsq(_with_one(mixtures_NK), losses_N, rcond=None)
    return lambda new_NK: np.asarray(_with_one(new_NK) @ slopes_K)


def ridge(mixtures_NK: Array, losses_N: Array, minimum: float) -> Predict:
    """Returns a ridge regression on ln(w + c), each scaled to variance 1.

    c and the penalty are those with the least leave-one-out error. A small c makes a weight of 0 far worse than a few
    per cent; a large one makes the plane of ``linear``.
    """
    offsets = sorted({minimum, *(offset for offset in _OFFSETS if offset > minimum)})
    errors = {
        (offset, penalty): _Ridge.of(mixtures_NK, losses_N, offset).left_out_error(penalty)
        for offset in offsets
        for penalty in _PENALTIES
    }
    offset, penalty = min(errors, key=errors.__getitem__)
    return _Ridge.of(mixtures_NK, losses_N, offset).fitted(penalty)


@dataclass(frozen=True)
class _Ridge:
    """ln(w + c) of the fitted mixtures, taken apart: X = left sizes right."""

    offset: float
    mean_K: Array  # noqa: N815  # letters of dimensions
    spread_K: Array  # noqa: N815
    mean: float
    centred_N: Array  # noqa: N815
    left_NR: Array  # noqa: N815
    sizes_R: Array  # noqa: N815
    right_RK: Array  # noqa: N815

    @classmethod
    def of(cls, mixtures_NK: Array, losses_N: Array, offset: float) -> _Ridge:
        logs_NK = np.log(mixtures_NK + offset)
        mean_K, spread_K = logs_NK.mean(axis=0), logs_NK.std(axis=0)
        spread_K = np.where(spread_K > 0, spread_K, 1.0)
        left_NR, sizes_R, right_RK = np.linalg.svd((logs_NK - mean_K) / spread_K, full_matrices=False)
        mean = float(losses_N.mean())
        return cls(offset, mean_K, spread_K, mean, losses_N - mean, left_NR, sizes_R, right_RK)

    def fitted(self, penalty: float) -> Predict:
        shrunk_R = self.sizes_R / (self.sizes_R**2 + penalty * len(self.centred_N))
        slopes_K = self.right_RK.T @ (shrunk_R * (self.left_NR.T @ self.centred_N))  # (X'X + penalty N)^-1 X'y

        def predict(new_NK: Array) -> Array:
            logs_NK = (np.log(new_NK + self.offset) - self.mean_K) / self.spread_K
            return np.asarray(self.mean + logs_NK @ slopes_K)

        return predict

    def left_out_error(self, penalty: float) -> float:
        """Returns the mean squared error of each row by the fit to the others, without making these fits.

        e_i / (1 - h_ii), h the diagonal of the smoother; 1 / N of it is the mean's.
        """
        kept_R = self.sizes_R**2 / (self.sizes_R**2 + penalty * len(self.centred_N))
        residual_N = self.centred_N - self.left_NR @ (kept_R * (self.left_NR.T @ self.centred_N))
        own_N = (self.left_NR**2 * kept_R).sum(axis=1) + 1 / len(self.centred_N)
        return float(np.mean((residual_N / np.maximum(1 - own_N, 1e-12)) ** 2))


def trees(mixtures_NK: Array, losses_N: Array) -> Predict:
    """Returns boosted trees of all mixtures, with as many rounds as was best, in the mean, for a fifth left out."""
    folds_N = np.arange(len(losses_N)) % FOLDS  # mixtures come in random order
    rounds = []
    for fold in range(FOLDS):
        out_N = folds_N == fold
        rounds.append(boosted(mixtures_NK[~out_N], losses_N[~out_N], mixtures_NK[out_N], losses_N[out_N])[1])
    import lightgbm  # here: an extra

    booster = lightgbm.train(
        _TREES, lightgbm.Dataset(mixtures_NK, losses_N), num_boost_round=max(1, round(float(np.mean(rounds))))
    )
    return lambda new_NK: np.asarray(booster.predict(new_NK), dtype=np.float64)


def boosted(fit_NK: Array, losses_N: Array, stop_MK: Array, stop_losses_M: Array) -> tuple[Predict, int]:
    """Returns boosted trees that are stopped early by other mixtures, as the authors' are, and their rounds.

    Training stops once the mean absolute or the mean squared error of these has not fallen for three rounds, and the
    best round of that measure predicts. With fewer than 40 mixtures no tree can split: the mean is predicted.

    Args:
        fit_NK: (N, K) mixtures to fit on.
        losses_N: (N,) their losses.
        stop_MK: (M, K) mixtures to stop by.
        stop_losses_M: (M,) their losses.
    """
    import lightgbm  # here: an extra

    data = lightgbm.Dataset(fit_NK, losses_N)
    booster = lightgbm.train(
        _TREES,
        data,
        num_boost_round=ROUNDS,
        valid_sets=[lightgbm.Dataset(stop_MK, stop_losses_M, reference=data)],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )
    rounds = int(booster.best_iteration)
    return lambda new_NK: np.asarray(booster.predict(new_NK, num_iteration=rounds), dtype=np.float64), rounds


def rank_correlation(predicted_N: Array, losses_N: Array) -> float:
    """Returns Spearman's correlation, ties by their mean rank; NaN where one side is all ties or has one number."""
    if len(losses_N) < 2 or len(set(predicted_N.tolist())) < 2 or len(set(losses_N.tolist())) < 2:
        return float("nan")
    from scipy.stats import spearmanr  # type: ignore[import-untyped]  # here: help needs no SciPy

    return float(spearmanr(predicted_N, losses_N).statistic)


def _with_one(mixtures_NK: Array) -> Array:
    return np.column_stack([np.ones(len(mixtures_NK)), mixtures_NK])
