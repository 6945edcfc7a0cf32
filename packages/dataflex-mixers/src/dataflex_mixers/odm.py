"""``odm``: a bandit over the sources, rewarded by their training losses (Online Data Mixing).

Albalak, Pan, Raffel and Wang, "Efficient Online Data Mixing For Language Model Pre-Training", arXiv 2312.02406,
Algorithm 1. With K sources, at an update after t optimizer steps of the run, warm-up included:

    eps_t = min(1/K, sqrt(ln K / (K t)))                                         exploration, falls with t
    pi_t(d) = (1 - K eps_t) softmax_d(eps_{t-1} R_d) + eps_t                     variant paper
    pi_t(d) = (1 - K eps_t) R_d / sum_k R_k + eps_t                              variant code
    R_d <- a R_d + (1 - a) L_d / pi_before(d)                                    variant paper, d seen
    R_d <- a R_d + (1 - a) exp(L_d)                                              variant code, d seen

For variant code ln R is kept: exp(L) overflows from a loss of 710 on.

L_d is the mean token loss of source d over the steps since the last update, over all micro-batches and ranks; pi_before
is what they were drawn by; R begins at 0. ``code`` is what the authors' program does. Both variants learn from the
steps after the warm-up alone: the first update, which ends the warm-up, drops its losses and keeps the proportions that
the run began with. The paper draws one source per micro-batch and updates at each step; here every source of the window
is an arm that was pulled. The reward may also be how far the loss has fallen since the last update, or how far it lies
above its running mean. Cost: none beyond the losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.cost import Ahead, Cost
from dataflex.core.errors import CheckpointError
from dataflex.core.parameter_checks import between, one_of, require
from dataflex.core.registry import register_mixer
from dataflex.train.mixer.base_mixer import Mixer
from dataflex.utils.logging import logger
from numpy.typing import NDArray

from dataflex_mixers.parts.loss_window import LossWindow
from dataflex_mixers.parts.simplex import Shares, raised, softmax

if TYPE_CHECKING:
    import torch
    from dataflex.core.context import UpdateContext
    from dataflex.planning.mixture import MixtureManager

VARIANTS = ("paper", "code")
REWARDS = ("loss", "loss_drop", "excess_over_ema")


def exploration(step: int, sources: int) -> float:
    """Returns eps_t of Algorithm 1, line 3; 1 / K for t = 0.

    Args:
        step: t, global optimizer steps done, from 0.
        sources: K >= 2.
    """
    if step == 0:
        return 1 / sources
    return min(1 / sources, math.sqrt(math.log(sources) / (sources * step)))


def policy(rewards_K: Shares, step: int, variant: str) -> Shares:
    """Returns pi_t: (K,), sum 1.

    Args:
        rewards_K: (K,) estimated rewards: R of ``paper``, ln R of ``code``, -inf for a reward of 0.
        step: t, global optimizer steps done, from 1.
        variant: ``paper`` or ``code``.
    """
    K = len(rewards_K)  # the paper's letter
    now = exploration(step, K)
    if variant == "paper":
        greedy_K = softmax(exploration(step - 1, K) * rewards_K)  # Algorithm 1, line 4
    else:
        greedy_K = softmax(rewards_K) if rewards_K.max() > -np.inf else np.full(K, 1 / K)  # R / sum R
    return np.asarray((1 - K * now) * greedy_K + now)


def rewarded(rewards_K: Shares, gains_K: Shares, shares_K: Shares, smoothing: float, variant: str) -> Shares:
    """Returns the rewards after a window: (K,). A source with gain NaN was not seen and keeps its reward.

    Args:
        rewards_K: (K,) those before: R of ``paper``, ln R of ``code``.
        gains_K: (K,) gain of each source in the window: L_d, or the reward that replaces it.
        shares_K: (K,) the proportions that the window was drawn by.
        smoothing: a.
        variant: ``paper`` or ``code``.
    """
    seen_K = np.isfinite(gains_K)
    if variant == "paper":
        worth_K = np.divide(gains_K, shares_K, out=np.zeros_like(gains_K), where=seen_K & (shares_K > 0))
        moved_K = smoothing * rewards_K + (1 - smoothing) * worth_K  # Algorithm 1, line 8
    else:
        log_keep = math.log(smoothing) if smoothing > 0 else -math.inf
        moved_K = np.logaddexp(log_keep + rewards_K, math.log1p(-smoothing) + np.where(seen_K, gains_K, 0.0))
    return np.where(seen_K, moved_K, rewards_K)


@register_mixer("odm")
class OdmMixer(Mixer):
    """A bandit over the sources, rewarded by their training losses (ODM, arXiv 2312.02406).

    Args:
        mixture_manager: The sources.
        variant: ``paper``: rewards weighed by importance, softmax; ``code``: exp(loss), divided by the sum.
        smoothing: a of the running reward, in [0, 1).
        reward: ``loss``; ``loss_drop``, how far a source's loss has fallen since the update before; or
            ``excess_over_ema``, how far it lies above its running mean.
        min_share: Least share of each source; 0 up to, not including, 1 / K. What a share lacks is taken from the
            others in proportion to what they have.

    Raises:
        ConfigError: A parameter has another value; the message holds every problem.
    """

    draws = False

    def __init__(
        self,
        mixture_manager: MixtureManager,
        variant: str = "paper",
        smoothing: float = 0.9,
        reward: str = "loss",
        min_share: float = 0.0,
    ) -> None:
        super().__init__(mixture_manager)
        K = len(mixture_manager.names)  # the paper's letter
        require(
            "odm mixer",
            one_of("variant", variant, VARIANTS),
            between("smoothing", smoothing, 0, 1, exclusive=True),
            one_of("reward", reward, REWARDS),
            between("min_share", min_share, 0, 1 / K, exclusive=True),
        )
        self.variant, self.smoothing, self.reward = variant, float(smoothing), reward
        self.min_share = float(min_share)
        self.step: int | None = None  # t of the last update; None before the first
        self.rewards_K: Shares = np.full(K, -np.inf if variant == "code" else 0.0)  # ln R, or R
        self.reference_K: NDArray[np.float64] = np.full(K, np.nan)  # the losses that gains are measured from
        self.window = LossWindow(K)

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """The losses are those of training. See the base class."""
        return Cost()

    def observe(self, step: int, losses_K: NDArray[np.float64], tokens_K: NDArray[np.int64]) -> None:
        """Adds a step to the window."""
        self.leave_out(self.window.add(losses_K, tokens_K), "a source's loss")

    def mix(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> Shares:
        """Returns pi_t: (K,), the same on every rank, as the losses are. The first update keeps the proportions."""
        first, self.step, shares_K = self.step is None, step_id, self.mixture_manager.proportions
        if first:  # the window holds the warm-up, which the authors' program does not learn from
            self._look_ahead(kwargs.get("context"))
            self.window = LossWindow(len(shares_K))
            return shares_K.copy()
        gains_K = self._gains(self.window.close())
        self.rewards_K = rewarded(self.rewards_K, gains_K, shares_K, self.smoothing, self.variant)
        return raised(policy(self.rewards_K, step_id, self.variant), self.min_share)

    def _look_ahead(self, context: UpdateContext | None) -> None:
        """Warns where no later update can change the proportions."""
        if context is not None and context.updates == 1:
            logger.warning(
                "odm mixer: the run has one update, at the end of the warm-up, and what is learnt comes after it, so "
                "the initial proportions hold throughout -> set update_times to 2 or more, or -1"
            )

    def details(self) -> dict[str, Any]:
        """Returns the losses of the window, the rewards, or the logarithms of those above 0, and the exploration."""
        names = self.mixture_manager.names
        rewards = zip(names, self.rewards_K.tolist(), strict=True)
        return {
            "losses": self.window.last(names),
            self._rewards_key: {name: reward for name, reward in rewards if math.isfinite(reward)},
            "exploration": exploration(self.step or 0, len(names)),
        }

    def _gains(self, losses_K: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns (K,) gains of the window, NaN for a source that was not seen or has no earlier loss."""
        if self.reward == "loss":
            return losses_K
        before_K, seen_K = self.reference_K, np.isfinite(losses_K)
        keep = self.smoothing if self.reward == "excess_over_ema" else 0.0
        first_K = seen_K & np.isnan(before_K)
        moved_K = np.where(first_K, losses_K, keep * before_K + (1 - keep) * losses_K)
        self.reference_K = np.where(seen_K, moved_K, before_K)
        return before_K - losses_K if self.reward == "loss_drop" else losses_K - before_K

    @property
    def _rewards_key(self) -> str:
        return "log_rewards" if self.variant == "code" else "rewards"

    def state_dict(self) -> dict[str, Any]:
        """Returns the rewards, the step of the last update and the open window."""
        return {
            "step": self.step,
            self._rewards_key: self.rewards_K.copy(),
            "reference": self.reference_K.copy(),
            "window": self.window.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        Raises:
            CheckpointError: It is of an earlier version, which counted updates.
        """
        if "step" not in state:
            raise CheckpointError(
                "the mixer 'odm' of this checkpoint counted updates, and it counts steps now -> start the run anew, or "
                "go on with the version that wrote it"
            )
        self.step = None if state["step"] is None else int(state["step"])
        self.rewards_K = np.array(state[self._rewards_key], dtype=np.float64)
        self.reference_K = np.array(state["reference"], dtype=np.float64)
        self.window.load_state_dict(state["window"])
