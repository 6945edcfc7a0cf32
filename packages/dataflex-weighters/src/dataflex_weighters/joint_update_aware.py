"""``joint_update_aware``: samples of a step that are like the target, and not all like each other, weigh more.

OpenDCAI/DataFlex, pull request 58 and release 1.1.0. With z_i the embedding of sample i by the model's last hidden
states, u the mean of those of the evaluation set, both scaled to length 1, over the samples of the step:

    s_i = z_i . u        S_ij = z_i . z_j
    w   = argmax over the simplex of  s'w - (beta / 2) w'Sw + tau H(w)                            objective: full
          without the second term                                                                 objective: align
          without the first                                                                       objective: diverse

and the loss of the step is sum_i w_i l_i. The maximum is found to a tolerance (:mod:`.parts.simplex_weights`), or
approached by a fixed number of steps as in the program (``iterations``).

The samples are those of the whole step, over its micro-batches and ranks. Where a step has one micro-batch, z is that
of the training forward; where it has several, the weights of the first depend on the others, and a forward pass more
over the step shows them, without logits. ``scope: batch`` compares those of one micro-batch alone, without that pass.
Rejected: the program's second forward for each micro-batch, whose weights sum to 1 in each.

Letters: S samples of a rank, G of all, L tokens of a sample, H width of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from dataflex.core.cost import NOTHING, Ahead, Cost, Work
from dataflex.core.parameter_checks import (
    at_least,
    count,
    count_or_null,
    flag,
    one_of,
    positive,
    require,
    share_or_null,
)
from dataflex.core.ranks.agreement import from_rank_0
from dataflex.core.ranks.gather_samples import gather_vectors
from dataflex.core.registry import register_weighter
from dataflex.scoring import read_target
from dataflex.scoring.embeddings import Pooling, answers_in, pool
from dataflex.utils.logging import logger
from numpy.typing import NDArray

from dataflex_weighters.parts.caught_states import CatchesHiddenStates
from dataflex_weighters.parts.compared_samples import SCOPES, rows_with_labels, warn_where_alone, with_mean_one
from dataflex_weighters.parts.embedded_target import chosen_rows, embedded_target
from dataflex_weighters.parts.simplex_weights import iterated, residual, steps_to_converge

if TYPE_CHECKING:
    from dataflex.scoring.passes.row_pass import Collator
    from dataflex.train.weighter.base_weighter import StepContext

OBJECTIVES = ("full", "align", "diverse")
POOLINGS: dict[str, tuple[Pooling, bool]] = {
    "last": ("last", False),
    "mean": ("mean", False),
    "answer": ("mean", True),
    "weighted": ("weighted", False),
}
"""Name -> how tokens become a vector, and whether of tokens with a label only."""
FAR = 1e-3
"""A step more that changes a weight by so much of the mean weight is worth a warning."""


def joint_weights(
    z_GH: torch.Tensor,
    u_H: torch.Tensor,
    counted_G: torch.Tensor,
    beta: float,
    tau: float,
    largest: float | None = None,
    objective: str = "full",
    iterations: int | None = None,
    damping: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns w and how far it is from the fixed point: (G,), sum 1 over the samples that count, and a scalar.

    Args:
        z_GH: (G, H) embeddings.
        u_H: (H,) that of the target.
        counted_G: (G,) bool, which samples take part.
        beta: Of the second term, at least 0.
        tau: Of the entropy, above 0.
        largest: At least the length squared of every embedding; None: it is read from the device.
        objective: One of :data:`OBJECTIVES`.
        iterations: Steps of the iteration; None: as many as reach the maximum.
        damping: rho in (0, 1]; None: 1 with ``iterations``, else what makes it converge.
    """
    z_GH = torch.where(counted_G[:, None], z_GH, 0.0)
    s_G, S_GG = z_GH @ u_H, z_GH @ z_GH.T
    if objective == "diverse":
        s_G = torch.zeros_like(s_G)
    if objective == "align":
        beta = 0.0
    if iterations is None:
        largest = float(S_GG.diagonal().max()) if largest is None and len(S_GG) else largest or 1.0
        steps, damping = steps_to_converge(beta, tau, largest, damping)
    else:
        steps = iterations
    w_G = iterated(s_G, S_GG, beta, tau, counted_G, steps, 1.0 if damping is None else damping)
    return w_G, residual(w_G, s_G, S_GG, beta, tau, counted_G)


@register_weighter("joint_update_aware")
class JointUpdateAwareWeighter(CatchesHiddenStates):
    """Weights the samples of a step jointly: like the target, unlike each other (OpenDCAI/DataFlex 1.1.0).

    Args:
        eval_dataset: The target; several sets count as one.
        data_collator: Makes a batch of tensors from a list of rows.
        beta: How much likeness among the samples costs, at least 0.
        tau: Temperature, > 0: smaller weighs more sharply.
        objective: ``full``; ``align``, likeness to the target alone; ``diverse``, unlikeness among the samples alone.
        iterations: Steps of the fixed-point iteration; null: as many as reach the maximum.
        damping: Share of the new weights in each step, in (0, 1]; null: 1 with ``iterations``, else a safe one.
        scope: ``step``: samples of the whole step are compared; ``batch``: those of a micro-batch of all ranks.
        pooling: ``last`` token, ``mean`` of the tokens, of those of the ``answer``, or ``weighted`` mean.
        normalise: Whether embeddings are scaled to length 1.
        refresh: Steps after which the target is embedded anew.
        anchors: Rows of the target to embed, drawn at each refresh; null for all.

    Raises:
        ConfigError: There is no evaluation set, or a parameter has another value; the message holds every problem.
    """

    reads_batches = True  # of the target
    asks = "hidden states"

    def __init__(
        self,
        eval_dataset: Any,
        data_collator: Collator,
        beta: float = 0.1,
        tau: float = 0.05,
        objective: str = "full",
        iterations: int | None = None,
        damping: float | None = None,
        scope: str = "step",
        pooling: str = "last",
        normalise: bool = True,
        refresh: int = 50,
        anchors: int | None = None,
    ) -> None:
        super().__init__()
        target = read_target(eval_dataset, "weighter", every=False)
        self.targets = {name: rows for name, rows in target.sets.items() if len(rows)}
        require(
            "joint_update_aware weighter",
            target.problem,
            at_least("beta", beta, 0),
            positive("tau", tau),
            one_of("objective", objective, OBJECTIVES),
            count_or_null("iterations", iterations, null="as many as reach the maximum"),
            share_or_null("damping", damping, null="a safe one"),
            one_of("scope", scope, SCOPES),
            one_of("pooling", pooling, tuple(POOLINGS)),
            flag("normalise", normalise),
            count("refresh", refresh),
            count_or_null("anchors", anchors, null="all"),
        )
        self.data_collator = data_collator
        self.beta, self.tau, self.objective = float(beta), float(tau), objective
        self.iterations, self.damping = iterations, damping
        self.scope, self.pooling, self.normalise = scope, pooling, normalise
        self.refresh, self.anchors = refresh, anchors
        self._began = False
        self._reported = False  # whether it was said how far the weights are from the fixed point
        self._target_H: torch.Tensor | None = None
        self._refreshed = -1  # the step of the last refresh
        self._of_step: tuple[int, torch.Tensor] | None = None  # step -> (S,) weights of this rank's samples
        self._weighed = 0  # samples of that step that were trained on
        self._farthest: torch.Tensor | None = None  # from the fixed point, in mean weights, since the last refresh

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """The target embedded every ``refresh`` steps; with several micro-batches, the step once more. See the base."""
        target, steps = ahead.target.at_most(params["anchors"]), max(1, ahead.steps)
        refreshes = -(-steps // params["refresh"])
        again = ahead.step if params["scope"] == "step" and ahead.micro_batches > 1 else NOTHING
        return Cost(step=Work(hidden=target.times(refreshes / steps) + again), state_bytes=4 * ahead.width)

    def before_forward(self, ctx: StepContext) -> None:
        """Embeds the target where that is due, and weighs a step of several micro-batches. See the base class."""
        step = ctx.state.global_step
        # What a later step embedded is of an earlier training by the same trainer.
        if self._target_H is None or not 0 <= step - self._refreshed < self.refresh:
            self._report()
            self._target_H, self._refreshed = torch.from_numpy(self._embedded(ctx, step)), step
        elif not self._reported:  # once before the next refresh, which a short run does not reach
            self._report()
        begins = self._of_step is None or self._of_step[0] != step or ctx.micro_batch == 0
        if self.scope == "step" and ctx.micro_batches > 1 and begins:
            found = ctx.step_embeddings(self._embed)  # the last column: whether the sample has a label
            width = ctx.most_samples * ctx.micro_batches if ctx.accelerator.num_processes > 1 else 0
            self._of_step = step, self._weights(found[:, :-1], found[:, -1] > 0, ctx, width)
            self._weighed = 0

    def get_weighted_loss(
        self, losses: torch.Tensor, *, ctx: StepContext, model: Any = None, inputs: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Returns the mean of G w_i l_i over this rank's samples of the micro-batch. See the base class."""
        if self.scope == "step" and ctx.micro_batches > 1:
            assert self._of_step is not None
            weights = self._of_step[1][self._weighed : self._weighed + losses.numel()]
            self._weighed += losses.numel()
        else:
            with torch.no_grad():
                found = self._embed(ctx.by_sample(self.hidden_states()), inputs)
            width = ctx.most_samples if ctx.accelerator.num_processes > 1 else 0
            weights = self._weights(found[:, :-1], found[:, -1] > 0, ctx, width)
        return (weights.to(losses) * losses).mean()

    def state_dict(self) -> dict[str, Any]:
        """Returns the embedded target, so that a resumed run goes on with it until the next refresh."""
        return {"target": None if self._target_H is None else self._target_H.cpu(), "refreshed": self._refreshed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._target_H, self._refreshed = state["target"], int(state["refreshed"])

    @torch.no_grad()
    def _weights(self, z_SH: torch.Tensor, labelled_S: torch.Tensor, ctx: StepContext, width: int) -> torch.Tensor:
        """Returns G w_i of this rank's samples: (S,), of mean 1 over all that count. Collective.

        Args:
            z_SH: (S, H) their embeddings.
            labelled_S: (S,) whether each has a label.
            ctx: The step.
            width: Places of a rank, see :func:`~dataflex.core.ranks.gather_samples.gather_vectors`.
        """
        assert self._target_H is not None
        self._target_H = self._target_H.to(z_SH)  # once: a copy to the device makes the host wait
        everyone_GH, counted_G, own = gather_vectors(z_SH, labelled_S, ctx.accelerator, width)
        if not self._began:
            self._began = True
            warn_where_alone(self.name, len(everyone_GH), self.scope)
        w_G, far = joint_weights(
            everyone_GH,
            self._target_H,
            counted_G,
            self.beta,
            self.tau,
            1.0 if self.normalise else None,
            self.objective,
            self.iterations,
            self.damping,
        )
        far = far * counted_G.sum()  # in units of the mean weight
        self._farthest = far if self._farthest is None else torch.maximum(self._farthest, far.to(self._farthest))
        return with_mean_one(w_G, counted_G)[own]

    def _embed(self, hidden_SLH: torch.Tensor, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Returns the embeddings of samples, and in the last column whether each has a label: (S, H + 1)."""
        pooling, of_answers = POOLINGS[self.pooling]
        mask_SL = _mask(inputs).to(hidden_SLH.device)
        if of_answers:
            mask_SL = answers_in(mask_SL, inputs.get("labels"))
        z_SH = pool(hidden_SLH, mask_SL, pooling, self.normalise)
        labelled_S = rows_with_labels(inputs, len(z_SH), z_SH.device)
        return torch.cat([z_SH, labelled_S.to(z_SH)[:, None]], dim=1)

    def _report(self) -> None:
        """Says how far the weights were from the fixed point since it was looked at last, where that is far."""
        if self._farthest is None:
            return
        self._reported = True
        far, self._farthest = float(self._farthest), None
        say = logger.warning if far > FAR else logger.debug
        say(
            "%s: of the last weights one lay %.2g of the mean weight from the fixed point -> more iterations (or "
            "null), a larger tau, or a smaller beta",
            self.name,
            far,
        )

    def _embedded(self, ctx: StepContext, step: int) -> NDArray[np.float32]:
        """Returns u: (H,) that of the target, the same on every rank."""
        pooling, of_answers = POOLINGS[self.pooling]
        chosen = chosen_rows(self.targets, self.anchors, self.generator(step))
        total = np.zeros(0, dtype=np.float64)
        desc = f"{self.name}: the target at step {step}"
        sets = embedded_target(  # u is the mean of the states themselves, so long ones count more
            self.targets, chosen, ctx, self.data_collator, pooling, desc, of_answers, normalise=False
        )
        for _, _, _, phi in sets:
            total = phi.sum(axis=0, dtype=np.float64) + (total if len(total) else 0)
        mean_H = torch.from_numpy(total / len(chosen))
        scaled_H: NDArray[np.float32] = (F.normalize(mean_H, dim=0) if self.normalise else mean_H).float().numpy()
        return scaled_H if ctx.accelerator is None else from_rank_0(ctx.accelerator, lambda: scaled_H)


def _mask(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns (S, L) bool: where there is a token. Without a mask of that shape, everywhere."""
    mask, tokens_SL = inputs.get("attention_mask"), inputs["input_ids"]
    return mask != 0 if mask is not None and mask.shape == tokens_SL.shape else torch.ones_like(tokens_SL).bool()
