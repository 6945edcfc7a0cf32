"""``adapt``: samples whose hidden states are like those of the target have larger weights.

ADAPT (ICLR 2026), arXiv 2605.05227. With h_t the last hidden states of a sample's T tokens and V a small target set:

    phi(x) = sum_t (t / sum_s s) h_t, scaled to length 1
    s(x)   = mean over v in V of cos(phi(x), phi(v)) = phi(x) . u,    u the mean of the phi(v)
    w(x)   = sigmoid(s(x) / max(tau, epsilon)), a constant

and the loss is the mean of w_i l_i: a learning rate per sample. The target is the run's evaluation set. The hidden
states are those of the training forward, dropout included; u is computed anew every ``refresh`` steps, in eval mode.

Cost: one weighted sum over the hidden states; a forward pass over the target per refresh; one vector of memory.
Rejected: a second forward in eval mode for the samples, which would cost a third of the step. Not covered: the variant
that takes BM25 similarities in the place of s.

Letters: B samples, T tokens, H width of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from dataflex.core.cost import Ahead, Cost, Work
from dataflex.core.explain import MOST_TARGETS, Explanation
from dataflex.core.parameter_checks import count, count_or_null, flag, positive, require
from dataflex.core.ranks.agreement import from_rank_0
from dataflex.core.registry import register_weighter
from dataflex.scoring import hidden_state_embeddings, read_target
from dataflex.scoring.embeddings import pool
from numpy.typing import NDArray

from dataflex_weighters.parts.anchors import Anchors, explained_weights
from dataflex_weighters.parts.caught_states import CatchesHiddenStates
from dataflex_weighters.parts.compared_samples import compared, rows_with_labels, with_mean_one
from dataflex_weighters.parts.embedded_target import chosen_rows, embedded_target

if TYPE_CHECKING:
    from dataflex.scoring.passes.row_pass import Collator
    from dataflex.train.weighter.base_weighter import StepContext

EPSILON = 1e-6  # the least temperature


def adapt_weights(phi_BH: torch.Tensor, u_H: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns the weights: (B,) in (0, 1).

    Args:
        phi_BH: (B, H) embeddings of length 1.
        u_H: (H,) mean of the target's embeddings, each of length 1.
        temperature: tau.
    """
    return torch.sigmoid(phi_BH @ u_H / max(temperature, EPSILON))  # w(x) = sigma(s(x) / max(tau, epsilon))


@register_weighter("adapt")
class AdaptWeighter(CatchesHiddenStates):
    """Weights by the cosine to the evaluation set in the model's last hidden states (ADAPT, arXiv 2605.05227).

    Args:
        eval_dataset: The target; several sets count as one.
        data_collator: Makes a batch of tensors from a list of rows.
        temperature: tau, > 0: below 1 tells samples apart more sharply.
        refresh: Steps after which the target is embedded anew.
        anchors: Rows of the target to embed, drawn at each refresh; null for all.
        normalise: Whether the weights are scaled to mean 1 over the micro-batch of all ranks.

    Raises:
        ConfigError: There is no evaluation set, or a parameter has another value; the message holds every problem.
    """

    reads_batches = True  # of the target
    asks = "hidden states"

    def __init__(
        self,
        eval_dataset: Any,
        data_collator: Collator,
        temperature: float = 1.0,
        refresh: int = 100,
        anchors: int | None = None,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        target = read_target(eval_dataset, "weighter", every=False)
        self.targets = {name: rows for name, rows in target.sets.items() if len(rows)}
        require(
            "adapt weighter",
            target.problem,
            positive("temperature", temperature),
            count("refresh", refresh),
            count_or_null("anchors", anchors, null="all"),
            flag("normalise", normalise),
        )
        self.data_collator = data_collator
        self.temperature, self.refresh = float(temperature), refresh
        self.anchors, self.normalise = anchors, normalise
        self._target_H: torch.Tensor | None = None
        self._anchors: list[Anchors] = []  # of the last refresh, for explaining; on rank 0, and not in checkpoints
        self._refreshed = -1  # the step of the last refresh

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """The target embedded every ``refresh`` steps; its share of each step. See the base class."""
        target, steps = ahead.target.at_most(params["anchors"]), max(1, ahead.steps)
        refreshes = -(-steps // params["refresh"])
        return Cost(step=Work(hidden=target.times(refreshes / steps)), state_bytes=4 * ahead.width)

    def before_forward(self, ctx: StepContext) -> None:
        """Embeds the target where that is due. See the base class."""
        step = ctx.state.global_step
        # What a later step embedded is of an earlier training by the same trainer.
        if self._target_H is None or not 0 <= step - self._refreshed < self.refresh:
            self._target_H, self._refreshed = torch.from_numpy(self._embedded(ctx, step)), step

    def get_weighted_loss(
        self, losses: torch.Tensor, *, ctx: StepContext, model: Any = None, inputs: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Returns the mean of w_i l_i over this rank's B samples. See the base class."""
        assert self._target_H is not None
        with torch.no_grad():
            hidden_BTH = ctx.by_sample(self.hidden_states())
            phi_BH = pool(hidden_BTH, _mask(inputs).to(hidden_BTH.device), "weighted")
            self._target_H = self._target_H.to(phi_BH)  # once: a copy to the device makes the host wait
            weights = adapt_weights(phi_BH, self._target_H, self.temperature).to(losses)
        if self.normalise:
            labelled = rows_with_labels(inputs, losses.numel(), losses.device)
            everyone, counted, _, own = compared(weights, labelled, ctx, "batch")
            weights = with_mean_one(everyone, counted)[own]
        return (weights * losses).mean()

    def explain(
        self, model: torch.nn.Module, rows_S: NDArray[np.int64], step_id: int, **kwargs: Any
    ) -> Explanation | None:
        """Returns which rows of the target some rows' hidden states are most like. See the base class.

        The terms are cos(phi(x), phi(v)) / |V|, with phi(v) of the last refresh; they sum to s(x). The weight is that
        of s(x) with the model in eval mode as it is now, before ``normalise``.
        """
        ctx = kwargs["context"]
        if self._target_H is None:
            return None  # no step has been weighed yet
        if not from_rank_0(ctx.accelerator, lambda: bool(self._anchors)):  # resumed since the last refresh
            self._embedded(ctx, self._refreshed)
        phi_SH = hidden_state_embeddings(
            model,
            kwargs["dataset"],
            collator=self.data_collator,
            accelerator=ctx.accelerator,
            indices=rows_S,
            pooling="weighted",
            desc=f"{self.name}: explaining rows at step {step_id}",
            progress=False,
            everywhere=False,
        )
        target_H = self._target_H.cpu().numpy().astype(np.float64)
        found: Explanation = from_rank_0(
            ctx.accelerator, lambda: explained_weights(self._anchors, phi_SH, target_H, self.temperature)
        )
        return found

    def state_dict(self) -> dict[str, Any]:
        """Returns the embedded target, so that a resumed run goes on with it until the next refresh."""
        return {"target": None if self._target_H is None else self._target_H.cpu(), "refreshed": self._refreshed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._target_H, self._refreshed = state["target"], int(state["refreshed"])

    def _embedded(self, ctx: StepContext, step: int) -> NDArray[np.float32]:
        """Returns u: (H,) the mean embedding of the target, the same on every rank."""
        chosen = chosen_rows(self.targets, self.anchors, self.generator(step))
        total = np.zeros(0, dtype=np.float64)
        kept, most = list[Anchors](), max(1, MOST_TARGETS // len(self.targets))
        desc = f"{self.name}: the target at step {step}"
        for name, rows, indices, phi in embedded_target(
            self.targets, chosen, ctx, self.data_collator, "weighted", desc
        ):
            total = phi.sum(axis=0, dtype=np.float64) + (total if len(total) else 0)
            if len(phi):  # on rank 0
                some = np.linspace(0, len(phi) - 1, min(most, len(phi))).astype(np.int64)
                kept.append(Anchors(name, rows, indices[some], phi[some], len(chosen)))
        self._anchors = kept
        mean_H: NDArray[np.float32] = (total / len(chosen)).astype(np.float32)
        return mean_H if ctx.accelerator is None else from_rank_0(ctx.accelerator, lambda: mean_H)


def _mask(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns (B, T) bool: where there is a token. Without a mask of that shape, everywhere."""
    mask, tokens_BT = inputs.get("attention_mask"), inputs["input_ids"]
    return mask != 0 if mask is not None and mask.shape == tokens_BT.shape else torch.ones_like(tokens_BT).bool()
