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
is an arm that was pulled. Something else may stand in the place of L_d, all seen while training goes by but the second:

    loss_drop, excess_over_ema   how far the loss has fallen since the last update, how far it lies above its mean
    eval_loss                    the mean loss of held-out rows of d at the update: a forward pass over them
    entropy                      the mean entropy of the model's next token at the labels of d, over ln V
    gradient_norm                1 / (|gradient of L_d| + 1e-4): less of what moves the model most

The last three are rewards of IBM's fms-acceleration (plugin ``odm``), which runs a batch of held-out rows through the
model for the entropy, and takes the norm of the whole step's gradient for that of its one source. Cost: none beyond the
losses but of ``eval_loss``, and products of a sketch in the measured steps of ``gradient_norm``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.cost import Ahead, Cost, Work
from dataflex.core.errors import CheckpointError, Problem
from dataflex.core.parameter_checks import between, count, idle, one_of, require
from dataflex.core.registry import register_mixer
from dataflex.interfaces.source_gradients import GradientSketch, SourceGradients, sketch_problems
from dataflex.model.label_logits import IGNORED
from dataflex.scoring import per_sample_losses
from dataflex.train.mixer.base_mixer import Mixer
from dataflex.utils.logging import logger
from numpy.typing import NDArray

from dataflex_mixers.parts.gradient_window import GradientWindow, sketch_cost
from dataflex_mixers.parts.held_out_rows import held_out
from dataflex_mixers.parts.loss_window import LossWindow
from dataflex_mixers.parts.simplex import Shares, raised, softmax
from dataflex_mixers.parts.token_entropy import token_entropies

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from dataflex.core.context import UpdateContext
    from dataflex.planning.mixture import MixtureManager

VARIANTS = ("paper", "code")
NORM_FLOOR = 1e-4
"""What is added to the norm of a gradient before its inverse is taken, as in fms-acceleration."""
LOSSES = ("loss", "train_loss")
"""Two names of the same reward: the paper's, and that of fms-acceleration."""
REWARDS = (*LOSSES, "loss_drop", "excess_over_ema", "eval_loss", "entropy", "gradient_norm")


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


def without_effect(
    reward: Any, eval_rows: Any, gradient_every: Any, proj_dim: Any, factor_dim: Any, layers: Any
) -> list[Problem | None]:
    """Returns a problem for each parameter that this reward does not look at; for a reward that there is not, none."""
    held_out, gradients = (reward == name or reward not in REWARDS for name in ("eval_loss", "gradient_norm"))
    return [
        idle("eval_rows", eval_rows, 64, held_out, "reward: eval_loss"),
        idle("gradient_every", gradient_every, 1, gradients, "reward: gradient_norm"),
        idle("proj_dim", proj_dim, 4096, gradients, "reward: gradient_norm"),
        idle("factor_dim", factor_dim, 16, gradients, "reward: gradient_norm"),
        idle("layers", layers, "linear", gradients, "reward: gradient_norm"),
    ]


@register_mixer("odm")
class OdmMixer(Mixer):
    """A bandit over the sources, rewarded by their training losses (ODM, arXiv 2312.02406).

    Args:
        mixture_manager: The sources.
        variant: ``paper``: rewards weighed by importance, softmax; ``code``: exp(loss), divided by the sum.
        smoothing: a of the running reward, in [0, 1).
        reward: ``loss``, or ``train_loss``, which is the same; ``loss_drop``, how far a source's loss has fallen since
            the update before; ``excess_over_ema``, how far it lies above its running mean; ``eval_loss``, the loss of
            its held-out rows; ``entropy``, of the model's next token; or ``gradient_norm``, the smaller the better.
        min_share: Least share of each source; 0 up to, not including, 1 / K. What a share lacks is taken from the
            others in proportion to what they have.
        eval_rows: Of ``eval_loss``: held-out rows of each source, the same at every update; all where there are fewer.
        gradient_every: Of ``gradient_norm``: steps from one whose gradients are measured to the next.
        proj_dim: Of ``gradient_norm``: numbers of a sketch; null: every number that ``factor_dim`` leaves.
        factor_dim: Of ``gradient_norm``: dimensions kept of each side of a larger matrix; null for whole matrices.
        layers: Of ``gradient_norm``: ``linear``, the weights of linear layers; or ``all``, every trained parameter.
        data_collator: Makes a batch of tensors from a list of held-out rows.
        accelerator: The run's accelerator.
        mixer_eval_dataset: Source -> held-out rows, for ``eval_loss``.

    Raises:
        ConfigError: A parameter has another value, or one of another reward is given, which nothing would look at; or
            a source has no held-out rows for ``eval_loss``. The message holds every problem.
    """

    asks = (
        "gradients if reward=gradient_norm, losses of tokens if reward=entropy, "
        "losses of held-out rows if reward=eval_loss"
    )
    needs_rows = "mixer_eval_dataset if reward=eval_loss"

    def __init__(
        self,
        mixture_manager: MixtureManager,
        variant: str = "paper",
        smoothing: float = 0.9,
        reward: str = "loss",
        min_share: float = 0.0,
        eval_rows: int = 64,
        gradient_every: int = 1,
        proj_dim: int | None = 4096,
        factor_dim: int | None = 16,
        layers: str = "linear",
        data_collator: Callable[[list[Any]], Mapping[str, torch.Tensor]] | None = None,
        accelerator: Accelerator | None = None,
        mixer_eval_dataset: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(mixture_manager)
        K = len(mixture_manager.names)  # the paper's letter
        require(
            "odm mixer",
            one_of("variant", variant, VARIANTS),
            between("smoothing", smoothing, 0, 1, exclusive=True),
            one_of("reward", reward, REWARDS),
            between("min_share", min_share, 0, 1 / K, exclusive=True),
            count("eval_rows", eval_rows),
            *sketch_problems(proj_dim, factor_dim, layers, gradient_every),
            *without_effect(reward, eval_rows, gradient_every, proj_dim, factor_dim, layers),
        )
        self.data_collator, self.accelerator, self.eval_rows = data_collator, accelerator, eval_rows
        self.held_out = None
        if reward == "eval_loss":
            self.held_out = held_out("odm mixer, reward: eval_loss,", mixture_manager.names, mixer_eval_dataset)
        self.gradient_every, self._sketch = gradient_every, GradientSketch(proj_dim, factor_dim, layers)
        self.gradients = GradientWindow()
        self.variant, self.smoothing, self.reward = variant, float(smoothing), reward
        self.min_share = float(min_share)
        self.step: int | None = None  # t of the last update; None before the first
        self.rewards_K: Shares = np.full(K, -np.inf if variant == "code" else 0.0)  # ln R, or R
        self.reference_K: NDArray[np.float64] = np.full(K, np.nan)  # the losses that gains are measured from
        self.window = LossWindow(K)
        self._told: dict[str, Any] = {}

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Losses, entropies and gradients are those of training; held-out rows cost a pass. See the base class."""
        if params["reward"] == "eval_loss" and ahead.update > ahead.first:
            return Cost(Work(forward=ahead.held_out.at_most(params["eval_rows"] * ahead.sources)))
        if params["reward"] != "gradient_norm":
            return Cost()
        return sketch_cost(params, ahead)

    @classmethod
    def may_observe_gradients(cls, params: Mapping[str, Any]) -> bool:
        """Only with ``gradient_norm``. See the base class."""
        return params.get("reward") == "gradient_norm"

    @classmethod
    def may_observe_logits(cls, params: Mapping[str, Any]) -> bool:
        """Only with ``entropy``. See the base class."""
        return params.get("reward") == "entropy"

    @classmethod
    def needs_held_out(cls, params: Mapping[str, Any]) -> bool:
        """Only with ``eval_loss``. See the base class."""
        return params.get("reward") == "eval_loss"

    @property
    def reads_batches(self) -> bool:  # type: ignore[override]  # it depends on a parameter
        """Only with ``eval_loss``, of held-out rows. See the base class."""
        return self.reward == "eval_loss"

    @property
    def observes_gradients(self) -> bool:
        """See the base class."""
        return self.reward == "gradient_norm"

    @property
    def observes_logits(self) -> bool:
        """See the base class."""
        return self.reward == "entropy"

    @property
    def gradient_sketch(self) -> GradientSketch:
        """See the base class."""
        return self._sketch

    def wants_gradients(self, step: int) -> bool:
        """Returns whether the step is one of every ``gradient_every``."""
        return step % self.gradient_every == 0

    def observe_gradients(self, step: int, gradients: SourceGradients) -> None:
        """Adds the gradients of a step to the window."""
        self.gradients.add(gradients)

    def logit_values(
        self, inputs: Mapping[str, Any], losses_BT: torch.Tensor, logits_BTV: torch.Tensor
    ) -> torch.Tensor:
        """Returns the entropy of the next token over ln V where there is a label: (B, T)."""
        there_BT = inputs["labels"].to(logits_BTV.device).roll(-1, dims=1) != IGNORED
        there_BT[:, -1] = False  # nothing follows
        return token_entropies(logits_BTV, there_BT)

    def observe(self, step: int, losses_K: NDArray[np.float64], tokens_K: NDArray[np.int64]) -> None:
        """Adds a step to the window."""
        self.leave_out(self.window.add(losses_K, tokens_K), "a source's loss")

    def mix(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> Shares:
        """Returns pi_t: (K,), the same on every rank, as the losses are. The first update keeps the proportions."""
        first, self.step, shares_K = self.step is None, step_id, self.mixture_manager.proportions
        if first:  # the window holds the warm-up, which the authors' program does not learn from
            self._look_ahead(kwargs.get("context"))
            self.window = LossWindow(len(shares_K))
            self.gradients.clear()
            return shares_K.copy()
        gains_K = self._gains(self.window.close(), model)
        if self.reward in ("eval_loss", "gradient_norm"):
            found = zip(self.mixture_manager.names, gains_K.tolist(), strict=True)
            self._told = {"gains": {name: gain for name, gain in found if math.isfinite(gain)}}
        self.rewards_K = rewarded(self.rewards_K, gains_K, shares_K, self.smoothing, self.variant)
        return raised(policy(self.rewards_K, step_id, self.variant), self.min_share)

    def _look_ahead(self, context: UpdateContext | None) -> None:
        """Warns where nothing can be learnt after the warm-up."""
        if context is None:
            return
        if context.updates == 1:
            logger.warning(
                "odm mixer: the run has one update, at the end of the warm-up, and what is learnt comes after it, so "
                "the initial proportions hold throughout -> set update_times to 2 or more, or -1"
            )
        following = -(-context.step // self.gradient_every) * self.gradient_every  # the next step that is measured
        if self.observes_gradients and following >= context.total_steps:
            logger.warning(
                "odm mixer: gradient_every: %d measures no step between the warm-up, %d steps, and the end, %d, so no "
                "gradient is learnt from -> set a smaller gradient_every",
                self.gradient_every, context.step, context.total_steps,
            )  # fmt: skip

    def details(self) -> dict[str, Any]:
        """Returns the losses of the window, the rewards, or the logarithms of those above 0, and the exploration.

        With ``entropy``, its entropies stand in the place of losses; with ``gradient_norm`` and ``eval_loss`` the gains
        come beside them.
        """
        names = self.mixture_manager.names
        rewards = zip(names, self.rewards_K.tolist(), strict=True)
        return {
            "entropies" if self.reward == "entropy" else "losses": self.window.last(names),
            **self._told,
            self._rewards_key: {name: reward for name, reward in rewards if math.isfinite(reward)},
            "exploration": exploration(self.step or 0, len(names)),
        }

    def _gains(self, losses_K: NDArray[np.float64], model: torch.nn.Module) -> NDArray[np.float64]:
        """Returns (K,) gains of the window, NaN for a source that was not seen or has no earlier loss.

        Collective with ``eval_loss``.
        """
        if self.reward in LOSSES or self.reward == "entropy":
            return losses_K
        if self.reward == "eval_loss":
            return self._held_out_losses(model)
        if self.reward == "gradient_norm":
            norms_K = self.gradients.norms(len(losses_K))
            self.gradients.clear()
            return np.asarray(1 / (norms_K + NORM_FLOOR))
        before_K, seen_K = self.reference_K, np.isfinite(losses_K)
        keep = self.smoothing if self.reward == "excess_over_ema" else 0.0
        first_K = seen_K & np.isnan(before_K)
        moved_K = np.where(first_K, losses_K, keep * before_K + (1 - keep) * losses_K)
        self.reference_K = np.where(seen_K, moved_K, before_K)
        return before_K - losses_K if self.reward == "loss_drop" else losses_K - before_K

    def _held_out_losses(self, model: torch.nn.Module) -> NDArray[np.float64]:
        """Returns the mean loss of each source's held-out rows: (K,), NaN where none has a label. Collective."""
        assert self.held_out is not None
        assert self.data_collator is not None
        parts = [
            first + np.unique(np.linspace(0, size - 1, min(self.eval_rows, size)).round().astype(np.int64))
            for first, size in zip(self.held_out.offsets.tolist(), self.held_out.sizes.tolist(), strict=False)
        ]
        losses_N = per_sample_losses(
            model, self.held_out, collator=self.data_collator, accelerator=self.accelerator,
            indices=np.concatenate(parts), desc=f"{self.name}: losses of held-out rows",
        ).astype(np.float64)  # fmt: skip
        found = np.split(losses_N, np.cumsum([len(part) for part in parts])[:-1])
        return np.array([rows[~np.isnan(rows)].mean() if (~np.isnan(rows)).any() else np.nan for rows in found])

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
            "gradients": self.gradients.state_dict(),
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
        if "gradients" in state:  # a checkpoint of an earlier version has none
            self.gradients.load_state_dict(state["gradients"])
