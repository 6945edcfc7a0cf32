"""``pike``: sources by what a step on them gains and by how noisy it is (PiKE, positive gradient interaction).

Li, Zhong, Razaviyayn and Mirrokni, "PiKE: Adaptive Data Mixing for Large-Scale Multi-Task Learning Under Low Gradient
Conflicts", arXiv 2502.06244, Algorithm 1. A batch of b rows mixes all sources. At each update:

    w_k <- w_k exp(zeta_1 |grad L_k|^2 - zeta_2 / (2 b) sigma_k^2), divided by its sum

sigma_k^2 is the expected squared distance of the gradient of a row of source k to grad L_k. Both come from the
gradients g_i of the rows of the measured steps since the last update, of which n are of source k:

    sigma_k^2    = (sum |g_i|^2 - |sum g_i|^2 / n) / (n - 1)
    |grad L_k|^2 = |sum g_i|^2 / n^2 - sigma_k^2 / n, at least 0                 ours: without the share of the noise

The balanced form minimises (1 / tau) ln sum exp(tau L_k): source k's exponent is multiplied by K softmax(tau L)_k. This
is the paper's y_k with tau / K taken into the zetas. They are constants to be tuned; with ``relative``, ours, both
terms are divided by the mean over the sources of |grad L_k|^2 + sigma_k^2 / b, the squared gradient of a batch, so that
they need not follow the scale of gradients: no exponent is then above K zeta_1 or below -K zeta_2 / 2. Not by |grad
L_k|^2 alone: where rows are few its estimate is often 0. The rule has no restoring force but the gradients themselves,
so many updates in a row add up: the paper makes one in hundreds of steps.

Gradients are sketches that come out of training's own backward pass. The sketch keeps squared norms in expectation, so
both moments are unbiased. Cost: no pass of its own.

Letters: K sources, D numbers of a sketch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.cost import Ahead, Cost
from dataflex.core.parameter_checks import at_least, between, flag, positive_or_null, require
from dataflex.core.registry import register_mixer
from dataflex.interfaces.source_gradients import ROW, GradientSketch, SourceGradients, sketch_problems
from dataflex.train.mixer.base_mixer import Mixer
from numpy.typing import NDArray

from dataflex_mixers.parts.gradient_window import GradientWindow, sketch_cost
from dataflex_mixers.parts.loss_window import LossWindow
from dataflex_mixers.parts.simplex import Shares, log_softmax, logarithm, raised, softmax

if TYPE_CHECKING:
    import torch
    from dataflex.planning.mixture import MixtureManager

Array = NDArray[np.float64]


def moments(sums_KD: Array, squares_K: Array, rows_K: NDArray[np.int64]) -> tuple[Array, Array]:
    """Returns |grad L_k|^2 and sigma_k^2: (K,) each, without bias; NaN for a source with fewer than two rows.

    Args:
        sums_KD: (K, D) sums of the gradients of rows.
        squares_K: (K,) sums of their squared norms.
        rows_K: (K,) how many there are.
    """
    n_K = rows_K.astype(np.float64)
    known_K = n_K >= 2
    n_K = np.where(known_K, n_K, np.nan)
    of_sum_K = np.square(sums_KD).sum(axis=1)
    variances_K = np.maximum(squares_K - of_sum_K / n_K, 0.0) / (n_K - 1)
    return np.maximum(of_sum_K / n_K**2 - variances_K / n_K, 0.0), variances_K


def exponents(norms_K: Array, variances_K: Array, batch: float, zeta_1: float, zeta_2: float) -> Array:
    """Returns zeta_1 |grad L_k|^2 - zeta_2 / (2 b) sigma_k^2: (K,); Algorithm 1.

    Args:
        norms_K: (K,) |grad L_k|^2.
        variances_K: (K,) sigma_k^2.
        batch: b, rows of an optimizer step.
        zeta_1: What the gain of a step counts.
        zeta_2: What its noise counts.
    """
    return np.asarray(zeta_1 * norms_K - zeta_2 / (2 * batch) * variances_K)


def balancing(losses_K: Array, tau: float) -> Array:
    """Returns K softmax(tau L): (K,), mean 1; a source whose loss is NaN has 1.

    Args:
        losses_K: (K,) mean losses.
        tau: Above 0; the larger, the more the worst source counts.
    """
    known_K = np.isfinite(losses_K)
    y_K = np.ones(len(losses_K))
    if known_K.any():
        y_K[known_K] = known_K.sum() * softmax(tau * losses_K[known_K])
    return y_K


def reweighted(log_shares_K: Shares, exponents_K: Array) -> Shares:
    """Returns ln w after an update: (K,). A source whose exponent is not known has the mean of the others'.

    Args:
        log_shares_K: (K,) ln w before.
        exponents_K: (K,) exponents, NaN where not known.
    """
    known_K = np.isfinite(exponents_K)
    if not known_K.any():
        return log_shares_K
    return log_softmax(log_shares_K + np.where(known_K, exponents_K, exponents_K[known_K].mean()))


@register_mixer("pike")
class PikeMixer(Mixer):
    """Sources by the size and the noise of their gradients, seen in training's own backward pass (arXiv 2502.06244).

    Args:
        mixture_manager: The sources.
        zeta_1: What the squared gradient of a source counts, at least 0.
        zeta_2: What the variance of its rows' gradients counts, at least 0.
        tau: Of the balanced form, above 0; null for the plain one.
        relative: Whether both are divided by the mean over the sources of the squared gradient of a batch.
        min_share: Least share of each source; 0 up to, not including, 1 / K.
        gradient_every: Steps from one whose gradients are measured to the next.
        proj_dim: Numbers of a sketch; null: every number that ``factor_dim`` leaves.
        factor_dim: Dimensions kept of each side of a larger matrix; null for whole matrices.
        layers: ``linear``, the weights of linear layers; or ``all``, every trained parameter.

    Raises:
        ConfigError: A parameter has another value; the message holds every problem.
    """

    asks = "gradients"

    def __init__(
        self,
        mixture_manager: MixtureManager,
        zeta_1: float = 0.1,
        zeta_2: float = 0.1,
        tau: float | None = None,
        relative: bool = True,
        min_share: float = 0.0,
        gradient_every: int = 1,
        proj_dim: int | None = 4096,
        factor_dim: int | None = 16,
        layers: str = "linear",
    ) -> None:
        super().__init__(mixture_manager)
        K = len(mixture_manager.names)
        require(
            "pike mixer",
            at_least("zeta_1", zeta_1, 0),
            at_least("zeta_2", zeta_2, 0),
            positive_or_null("tau", tau, "the plain form"),
            flag("relative", relative),
            between("min_share", min_share, 0, 1 / K, exclusive=True),
            *sketch_problems(proj_dim, factor_dim, layers, gradient_every),
        )
        self.zeta_1, self.zeta_2, self.relative = float(zeta_1), float(zeta_2), relative
        self.tau = None if tau is None else float(tau)
        self.min_share, self.gradient_every = float(min_share), gradient_every
        self._sketch = GradientSketch(proj_dim, factor_dim, layers, ROW)
        self.log_shares_K: Shares = logarithm(mixture_manager.proportions)
        self.gradients, self.losses = GradientWindow(), LossWindow(K)
        self._told: dict[str, Array] = {}

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Gradients are those of training. See the base class."""
        return sketch_cost(params, ahead)

    @property
    def gradient_sketch(self) -> GradientSketch:
        """See the base class."""
        return self._sketch

    def wants_gradients(self, step: int) -> bool:
        """Returns whether the step is one of every ``gradient_every``."""
        return step % self.gradient_every == 0

    def observe(self, step: int, losses_K: Array, tokens_K: NDArray[np.int64]) -> None:
        """Adds the losses of a step to the window."""
        self.leave_out(self.losses.add(losses_K, tokens_K), "a source's loss")

    def observe_gradients(self, step: int, gradients: SourceGradients) -> None:
        """Adds the gradients of a step to the window."""
        self.gradients.add(gradients)

    def mix(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> Shares:
        """Returns w: (K,), the same on every rank, as the gradients are."""
        losses_K, window = self.losses.close(), self.gradients
        if window.sums_KD is not None:
            norms_K, variances_K = moments(window.sums_KD, window.squares_K, window.rows_K)
            batch = float(window.rows_K.sum()) / window.steps
            squares_K = norms_K + variances_K / batch if batch > 0 else norms_K
            scale = float(np.nanmean(squares_K)) if self.relative and np.isfinite(squares_K).any() else 1.0
            found_K = np.full(len(norms_K), np.nan)
            if scale > 0 and batch > 0:
                found_K = exponents(norms_K / scale, variances_K / scale, batch, self.zeta_1, self.zeta_2)
            if self.tau is not None:
                found_K = found_K * balancing(losses_K, self.tau)
            self.log_shares_K = reweighted(self.log_shares_K, found_K)
            self._told = {"squared_gradients": norms_K, "variances": variances_K, "exponents": found_K}
            window.clear()
        return raised(softmax(self.log_shares_K), self.min_share)

    def details(self) -> dict[str, Any]:
        """Returns the moments of the gradients and what they come to."""
        names = self.mixture_manager.names
        return {
            key: {name: value for name, value in zip(names, values_K.tolist(), strict=True) if np.isfinite(value)}
            for key, values_K in self._told.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Returns ln w and the open windows."""
        return {
            "log_shares": self.log_shares_K, "gradients": self.gradients.state_dict(),
            "losses": self.losses.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.log_shares_K = np.array(state["log_shares"], dtype=np.float64)
        self.gradients.load_state_dict(state["gradients"])
        self.losses.load_state_dict(state["losses"])
