"""``ado``: sources in proportion to how fast they are being learnt, from scaling laws of their training losses.

Jiang, Zhou, Feng, Malladi and Kolter, "Adaptive Data Optimization: Dynamic Sample Selection with Scaling Laws" (ICLR
2025), arXiv 2410.11820. Every ``fit_every`` steps L_k(n) = eps_k + beta_k n^(-alpha_k) is fitted to each source's
training losses (:mod:`dataflex_mixers.parts.power_law`); at each step t:

    rho_k proportional to mu_k h_k^s max(alpha_k, 0.05) (L_k(n) - eps_k) / n      mu the prior, h the recent proportions
    rho <- max(rho, min_share), divided by its sum
    pi = gamma_2 rho + (1 - gamma_2) pi_bar
    h <- gamma_1 pi + (1 - gamma_1) h
    pi_bar <- rho / (t + 1) + (1 - 1 / (t + 1)) pi_bar

The floors of alpha and rho are those of the authors' program. n counts the tokens of all sources, in units of 1024:
what is learnt from one source helps the others. In a step without tokens of a source, its last loss is taken again. pi
takes effect at the next update, and h follows the proportions in force; with ``update_step: 1`` that is the paper.
Until the first fit the prior holds: the proportions that the run began with. Cost: fractions of a second per fit, next
to nothing per step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.utils import broadcast_object_list
from dataflex.core.cost import Ahead, Cost
from dataflex.core.parameter_checks import between, count, require
from dataflex.core.registry import register_mixer
from dataflex.train.mixer.base_mixer import Mixer
from dataflex.utils.logging import logger
from numpy.typing import NDArray

from dataflex_mixers.parts.loss_window import not_finite
from dataflex_mixers.parts.power_law import fit_power_law, log_learning_speed, smoothed
from dataflex_mixers.parts.simplex import Shares, log_clipped, log_softmax, logarithm, softmax

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from dataflex.core.context import UpdateContext
    from dataflex.planning.mixture import MixtureManager

UNIT = 1024  # tokens
FEWEST = 8  # points, for three parameters
LEAST_ALPHA = 0.05  # of the authors' policy: a source whose law is flat keeps a share


def preference(log_prior_K: Shares, log_history_K: Shares, log_speeds_K: NDArray[np.float64], credit: float) -> Shares:
    """Returns ln rho: (K,).

    Args:
        log_prior_K: (K,) ln mu.
        log_history_K: (K,) ln h.
        log_speeds_K: (K,) the logarithm of -dL/dn of each source.
        credit: s, the power of h.
    """
    past_K = credit * log_history_K if credit else np.zeros_like(log_history_K)  # h^0 is 1, of an h of 0 as well
    log_rho_K = log_prior_K + past_K + log_speeds_K
    return log_softmax(log_rho_K) if log_rho_K.max() > -np.inf else log_prior_K


def blended(log_new_K: Shares, log_old_K: Shares, rate: float) -> Shares:
    """Returns ln (rate new + (1 - rate) old): (K,), from the logarithms of both."""
    new, old = logarithm(np.array([rate, 1 - rate]))
    return np.asarray(np.logaddexp(new + log_new_K, old + log_old_K))


@register_mixer("ado")
class AdoMixer(Mixer):
    """Sources in proportion to how fast they are being learnt, by scaling laws of their losses (ADO, arXiv 2410.11820).

    Args:
        mixture_manager: The sources; their initial proportions are the prior.
        accelerator: The run's accelerator: rank 0 fits for all.
        fit_every: Steps between two fits.
        start_step: Optimizer steps before the first fit.
        skip_steps: Optimizer steps at the beginning whose losses are left out of fits.
        subsample: Every how many steps a fit takes a point.
        smoothing_window: Width of the Savitzky-Golay filter over the losses, in steps; odd, 5 or more.
        credit: s, the power of the history, from 0 to 1.
        history_rate: gamma_1, from 0 to 1.
        policy_rate: gamma_2, from 0 to 1.
        min_share: Least value of rho, the preference of a step: a lower one is raised to it. From 0 to below 1 / K.

    Raises:
        ConfigError: A parameter is out of its range; the message holds all that are.
    """

    draws = False
    asks = "loss curves"

    def __init__(
        self,
        mixture_manager: MixtureManager,
        accelerator: Accelerator,
        fit_every: int = 1000,
        start_step: int = 2000,
        skip_steps: int = 1000,
        subsample: int = 10,
        smoothing_window: int = 101,
        credit: float = 0.5,
        history_rate: float = 0.1,
        policy_rate: float = 0.1,
        min_share: float = 0.01,
    ) -> None:
        super().__init__(mixture_manager)
        K = len(mixture_manager.names)
        require(
            "ado mixer",
            count("fit_every", fit_every),
            count("start_step", start_step),
            count("skip_steps", skip_steps, least=0),
            count("subsample", subsample),
            count("smoothing_window", smoothing_window, least=5),
            between("credit", credit, 0, 1),
            between("history_rate", history_rate, 0, 1),
            between("policy_rate", policy_rate, 0, 1),
            between("min_share", min_share, 0, 1 / K, exclusive=True),
        )
        self.accelerator = accelerator
        self.fit_every, self.start_step, self.skip_steps = fit_every, start_step, skip_steps
        self.subsample, self.smoothing_window = subsample, smoothing_window - 1 + smoothing_window % 2
        self.credit, self.history_rate, self.policy_rate = float(credit), float(history_rate), float(policy_rate)
        self.min_share = float(min_share)
        self.prior_K: Shares = mixture_manager.proportions.copy()
        # Logarithms are kept: a share that falls by the same factor in each step underflows soon, and with credit 1 it
        # would stay 0.
        self.log_history_K, self.log_average_K, self.log_policy_K = (logarithm(self.prior_K) for _ in range(3))
        self._log_in_force_K: Shares | None = None  # ln of what mix() answered last
        self.params_K3: NDArray[np.float64] | None = None
        self.fitted_at = 0
        self.counts_T: list[float] = []  # n after each step
        self.losses_TK: list[NDArray[np.float32]] = []

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """The losses are those of training, and fits take few numbers. See the base class."""
        return Cost()

    def observe(self, step: int, losses_K: NDArray[np.float64], tokens_K: NDArray[np.int64]) -> None:
        """Adds a step to the history and moves the policy."""
        self.leave_out(not_finite(losses_K, tokens_K), "a source's loss")
        seen_K = (tokens_K > 0) & np.isfinite(losses_K)
        if not seen_K.any():
            return
        tokens_K = np.where(seen_K, tokens_K, 0)
        mean = float((losses_K[seen_K] * tokens_K[seen_K]).sum() / tokens_K.sum())
        last_K = self.losses_TK[-1] if self.losses_TK else np.full(len(losses_K), mean)
        self.losses_TK.append(np.where(seen_K, losses_K, last_K).astype(np.float32))
        self.counts_T.append((self.counts_T[-1] if self.counts_T else 0.0) + float(tokens_K.sum()) / UNIT)
        now_K = self._log_in_force_K
        now_K = logarithm(self.mixture_manager.proportions) if now_K is None else now_K
        self.log_history_K = blended(now_K, self.log_history_K, self.history_rate)  # h
        if self.params_K3 is not None:
            self._advance(step)

    def mix(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> Shares:
        """Returns pi, or the prior before the first fit: (K,), the same on every rank."""
        context: UpdateContext | None = kwargs.get("context")  # without a context there is no run to warn about
        if context is not None and context.update == 0:
            self._look_ahead(context.total_steps)
        if step_id >= self.start_step and (self.params_K3 is None or step_id - self.fitted_at >= self.fit_every):
            first = self.params_K3 is None
            self._fit(step_id)
            if first and self.params_K3 is not None:
                self._advance(step_id)
        self._log_in_force_K = self.log_policy_K
        return softmax(self.log_policy_K)

    def details(self) -> dict[str, Any]:
        """Returns the laws in force and the learning speeds."""
        if self.params_K3 is None:
            return {}
        names, params_K3 = self.mixture_manager.names, self.params_K3
        laws = zip(names, np.exp(params_K3[:, 0]), np.exp(params_K3[:, 1]), params_K3[:, 2], strict=True)
        speeds_K = np.exp(log_learning_speed(params_K3, self.counts_T[-1], LEAST_ALPHA))
        return {
            "laws": {name: {"beta": float(b), "epsilon": float(e), "alpha": float(a)} for name, b, e, a in laws},
            "learning_speed": dict(zip(names, speeds_K.tolist(), strict=True)),
            "fitted_at": self.fitted_at,
        }

    def _look_ahead(self, total_steps: int) -> None:
        """Warns where the run ends before there can be a fit."""
        first = max(self.start_step, self.skip_steps + (FEWEST - 1) * self.subsample + 1)
        if first >= total_steps:
            logger.warning(
                "ado mixer: the first fit is at step %d and the run has %d steps, so the initial proportions hold "
                "throughout -> lower start_step (%d), skip_steps (%d) or subsample (%d)",
                first, total_steps, self.start_step, self.skip_steps, self.subsample,
            )  # fmt: skip

    def _advance(self, step: int) -> None:
        """Moves pi and pi_bar by one step."""
        assert self.params_K3 is not None
        log_speeds_K = log_learning_speed(self.params_K3, self.counts_T[-1], LEAST_ALPHA)
        log_rho_K = preference(logarithm(self.prior_K), self.log_history_K, log_speeds_K, self.credit)
        log_rho_K = log_clipped(log_rho_K, self.min_share)
        self.log_policy_K = blended(log_rho_K, self.log_average_K, self.policy_rate)  # pi
        self.log_average_K = blended(log_rho_K, self.log_average_K, 1 / (step + 1))  # pi_bar

    def _fit(self, step: int) -> None:
        """Fits a law to each source, on rank 0; does nothing while there are too few points."""
        counts_P = np.array(self.counts_T[self.skip_steps :: self.subsample])
        if len(counts_P) < FEWEST:
            return
        answer: list[Any] = [None]
        if self.accelerator.is_main_process:
            losses_TK = smoothed(np.array(self.losses_TK, dtype=np.float64), self.smoothing_window)
            points_PK = np.maximum(losses_TK[self.skip_steps :: self.subsample], 1e-6)  # a filter may undershoot 0
            before = [None] * points_PK.shape[1] if self.params_K3 is None else list(self.params_K3)
            answer[0] = np.stack(
                [fit_power_law(counts_P, points_P, b) for points_P, b in zip(points_PK.T, before, strict=True)]
            )
        if self.accelerator.num_processes > 1:
            broadcast_object_list(answer)
        self.params_K3, self.fitted_at = answer[0], step

    def state_dict(self) -> dict[str, Any]:
        """Returns the history of counts and losses, the laws and the policy."""
        return {
            "counts": np.array(self.counts_T, dtype=np.float64),
            "losses": np.array(self.losses_TK, dtype=np.float32),
            "params": self.params_K3,
            "fitted_at": self.fitted_at,
            "log_history": self.log_history_K,
            "log_average": self.log_average_K,
            "log_policy": self.log_policy_K,
            "log_in_force": self._log_in_force_K,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.counts_T = state["counts"].tolist()
        self.losses_TK = list(np.array(state["losses"], dtype=np.float32))
        self.params_K3 = None if state["params"] is None else np.array(state["params"])
        self.fitted_at = int(state["fitted_at"])
        self.log_history_K, self.log_average_K, self.log_policy_K = (
            np.array(state[key], dtype=np.float64) for key in ("log_history", "log_average", "log_policy")
        )
        in_force = state["log_in_force"]
        self._log_in_force_K = None if in_force is None else np.array(in_force, dtype=np.float64)
