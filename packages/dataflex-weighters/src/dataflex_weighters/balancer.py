"""``balancer``: every source moves the model as much as its weight says, however large its gradients are.

The losses that are balanced are those of the sources; :mod:`dataflex_weighters.parts.loss_balancer` has the formula and
its origin. A row belongs to one source. So at the last hidden states h the gradients of the sources lie in different
rows, and one ordinary backward pass shows all of them:

    n_k = mean over the rows i of source k in the step of |d l_i / d h_i|,   N_k their running mean
    lambda_k = (w_k / sum_j w_j) / (epsilon + N_k),  scaled so that the mean weight of the rows is 1

lambda_k weighs the losses of source k in the next step. So all parameters are balanced, the output layer included, one
step late. Rejected: scaling the gradient rows inside of the hook, which is exact but does not reach the output layer.

Cost: the norm of the gradient at h, a few numbers between ranks per step. Under fp16 of DeepSpeed a change of its loss
scale looks like a change of the gradients.

Letters: B rows of the micro-batch, K sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from dataflex.core.context import RunAhead
from dataflex.core.cost import Ahead, Cost
from dataflex.core.errors import ComponentError
from dataflex.core.parameter_checks import at_least, between, require
from dataflex.core.registry import register_weighter
from dataflex.model.unwrapped import output_embeddings, pretrained_models

from dataflex_weighters.parts.caught_states import CatchesHiddenStates
from dataflex_weighters.parts.loss_balancer import Balancer, RunningMeans
from dataflex_weighters.parts.source_checks import known_sources, names_of, source_weights

if TYPE_CHECKING:
    from dataflex.train.weighter.base_weighter import StepContext

__all__ = ["Balancer", "BalancerWeighter", "balanced"]


def balanced(
    shares: Mapping[str, float], norms: Mapping[str, float], rows: Mapping[str, float], epsilon: float
) -> dict[str, float]:
    """Returns source -> lambda, with mean 1 over the rows; sources without a norm are not in it.

    Args:
        shares: w, source -> share of the gradient of a row.
        norms: N, source -> mean norm of the gradient of a row; some or all sources.
        rows: Source -> what its rows count, for the mean.
        epsilon: What is added to each norm.
    """
    raw = {name: shares[name] / (epsilon + norm) for name, norm in norms.items() if epsilon + norm > 0}
    counted = sum(rows[name] for name in raw if shares[name] > 0)
    mean = sum(raw[name] * rows[name] for name in raw) / counted if counted > 0 else 0.0
    return {name: value / mean for name, value in raw.items()} if mean > 0 else {}


@register_weighter("balancer")
class BalancerWeighter(CatchesHiddenStates):
    """Weighs sources so that their shares of the gradient are what is asked for, whatever their losses' scales.

    Args:
        dataset: The train dataset, which knows its sources.
        weights: Source -> share of the gradient that a row has, relative to the rows of other sources; sources that
            are not named have 1. Null: all have the same.
        ema_decay: Of the running mean of the norms, from 0 to 1; the larger, the slower.
        epsilon: What is added to each norm, at least 0.

    Raises:
        ConfigError: A parameter has another value, or a source is not known; the message holds every problem.
    """

    draws = False
    asks = "hidden states"

    def __init__(
        self, dataset: Any, weights: Mapping[str, float] | None = None, ema_decay: float = 0.999, epsilon: float = 1e-12
    ) -> None:
        super().__init__()
        names = names_of(dataset)
        require(
            "balancer weighter",
            known_sources(dataset),
            *source_weights("weights", weights, names),
            between("ema_decay", ema_decay, 0, 1),
            at_least("epsilon", epsilon, 0),
        )
        self.shares = {name: float((weights or {}).get(name, 1.0)) for name in names}
        self.epsilon = float(epsilon)
        self._norms, self._rows = RunningMeans(float(ema_decay)), RunningMeans(float(ema_decay))
        # Of this rank in this step: sum of norms, rows, what they count, rows whose norm is not finite.
        self._seen_K4: torch.Tensor | None = None

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Norms are taken of gradients that training has. See the base class."""
        return Cost()

    @classmethod
    def needs_sources(cls, params: Mapping[str, Any]) -> bool:
        """Always. See the base class."""
        return True

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses a model of which the output layer alone is trained: no gradient reaches the hidden states."""
        outputs = output_embeddings(pretrained_models(model))
        behind = set() if outputs is None else {id(p) for p in outputs.parameters()}
        if all(id(p) in behind for p in model.parameters() if p.requires_grad):
            raise ComponentError("no gradient reaches the hidden states -> train more than the output layer")

    @property
    def by_source(self) -> dict[str, float]:
        """Source -> weight of its rows in the next step; 1 for a source not seen so far."""
        found = balanced(self.shares, self._norms.means(), self._rows.means(), self.epsilon)
        return {name: found.get(name, 1.0 if share > 0 else 0.0) for name, share in self.shares.items()}

    def after_backward(self, ctx: StepContext) -> None:
        """Averages the norms of the gradients once the step is done. See the base class."""
        if ctx.is_last_micro_batch:
            self._average(ctx)

    def get_weighted_loss(
        self, losses: torch.Tensor, *, ctx: StepContext, model: Any = None, inputs: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Returns the mean of w_i l_i over this rank's B samples. See the base class."""
        hidden = self.hidden_states()
        if not hidden.requires_grad:
            raise ComponentError("no gradient reaches the hidden states: train more than the output layer")
        sources_B = ctx.sources_of(ctx.batch_rows).to(losses.device)
        weights_K = torch.tensor(list(self.by_source.values()), dtype=losses.dtype)
        weights_B = weights_K.to(losses.device, non_blocking=True)[sources_B]
        hidden.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: self._look(gradient, sources_B, weights_B, ctx)
        )
        return (weights_B * losses).mean()

    def state_dict(self) -> dict[str, Any]:
        """Returns the running means."""
        return {"norms": self._norms.state_dict(), "rows": self._rows.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._norms.load_state_dict(state["norms"])
        self._rows.load_state_dict(state["rows"])

    @torch.no_grad()
    def _look(self, gradient: torch.Tensor, sources_B: torch.Tensor, weights_B: torch.Tensor, ctx: StepContext) -> None:
        """Adds the micro-batch's norms. A row of weight 0 has no gradient that could be looked at."""
        scale = ctx.loss_scale
        factors_B = ctx.sample_factors.to(gradient.device).float()
        seen_B = factors_B > 0
        norms_B = ctx.by_sample(gradient).float().flatten(1).norm(dim=1)
        norms_B = norms_B / torch.where(seen_B, factors_B * scale, 1.0)  # |d l_i / d h_i|
        counts_B = torch.where(seen_B, factors_B / torch.where(seen_B, weights_B, 1.0), 0.0)  # of wrong rows as well
        wrong_B = seen_B & ~norms_B.isfinite()  # an overflow in fp16 is enough
        seen_B = seen_B & ~wrong_B
        found_B4 = torch.stack([torch.where(seen_B, norms_B, 0.0), seen_B.float(), counts_B, wrong_B.float()], dim=1)
        if self._seen_K4 is None:
            self._seen_K4 = norms_B.new_zeros(len(self.shares), 4)
        self._seen_K4.index_add_(0, sources_B, found_B4)

    def _average(self, ctx: StepContext) -> None:
        """Takes the step's norms over all ranks into the running means."""
        own = self._seen_K4 if self._seen_K4 is not None else torch.zeros(len(self.shares), 4)
        self._seen_K4 = None
        if ctx.accelerator.num_processes > 1:
            own = ctx.accelerator.gather(own.to(ctx.accelerator.device)).view(-1, len(self.shares), 4).sum(dim=0)
        found = dict(zip(self.shares, own.tolist(), strict=True))
        self.leave_out(int(sum(wrong for *_, wrong in found.values())), "the gradient of a row")
        self._norms.update({name: norms / rows for name, (norms, rows, *_) in found.items() if rows > 0})
        if any(rows > 0 for _, rows, *_ in found.values()):
            self._rows.update({name: counts for name, (_, _, counts, _) in found.items()})
