"""``trim``: the samples with the highest losses do not count.

Where labels are wrong, the model's loss on them stays high; leaving the highest share of a batch out is the trimmed
loss of robust statistics (Rousseeuw 1984), used for noisy labels by Shen and Sanghavi, "Learning with Bad Training
Data via Iterative Trimmed Loss Minimization" (ICML 2019, arXiv 1810.11874):

    w_i = 0 for the floor(q G) samples with the highest losses of the G compared, 1 for the others

Cost: two small collectives per micro-batch on several ranks, none on one; ``scope: step`` a forward pass more. Not
covered: a threshold that is carried from step to step.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from dataflex.core.cost import Ahead, Cost
from dataflex.core.parameter_checks import between, flag, one_of, require
from dataflex.core.registry import register_weighter
from dataflex.train.weighter.base_weighter import StepContext, Weighter

from dataflex_weighters.parts.compared_samples import SCOPES, compared, compared_cost, rows_with_labels, with_mean_one


def trimmed(losses_G: torch.Tensor, share: float, counted_G: torch.Tensor | None = None) -> torch.Tensor:
    """Returns the weights: (G,) 0 for the floor(share n) highest of the n losses that count, 1 for the others.

    Of equal losses the last ones are left out first, so that every rank leaves out the same. The host does not wait.

    Args:
        losses_G: (G,) losses.
        share: q, in [0, 1).
        counted_G: (G,) which of them count, n; None for all. The others get 0.
    """
    if counted_G is None:
        counted_G = torch.ones_like(losses_G, dtype=torch.bool)
    numbers = torch.arange(losses_G.numel(), device=losses_G.device)
    order_G = (~counted_G).to(torch.uint8).argsort(stable=True)  # those that count first, as they stand
    order_G = order_G[torch.sort(torch.where(counted_G, losses_G, torch.inf)[order_G], stable=True).indices]
    rank_G = torch.empty_like(numbers).scatter_(0, order_G, numbers)  # 0 for the least loss
    kept = _kept(losses_G.numel(), share).to(losses_G.device, non_blocking=True).index_select(0, counted_G.sum()[None])
    return ((rank_G < kept) & counted_G).to(losses_G.dtype)


@functools.lru_cache(maxsize=64)
def _kept(most: int, share: float) -> torch.Tensor:
    """Returns how many of 0, 1, ... ``most`` losses are kept: 0.3 * 10 is 3, whatever floats make of it."""
    return torch.tensor([count - int(share * count + 1e-9) for count in range(most + 1)])


@register_weighter("trim")
class TrimWeighter(Weighter):
    """Leaves out the samples with the highest losses.

    Args:
        share: The share of samples to leave out, from 0 to below 1; the number is rounded down.
        scope: What is compared: ``batch``, the micro-batch over all ranks; ``step``, all micro-batches of the step over
            all ranks, for a forward pass more.
        normalise: Whether the samples that are left count more, so that the mean weight stays 1.

    Raises:
        ConfigError: A parameter has another value; the message holds every problem.
    """

    draws = False
    asks = "losses of a step if scope=step"

    def __init__(self, share: float = 0.1, scope: str = "batch", normalise: bool = False) -> None:
        super().__init__()
        require(
            "trim weighter",
            between("share", share, 0, 1, exclusive=True),
            one_of("scope", scope, SCOPES),
            flag("normalise", normalise),
        )
        self.share, self.scope, self.normalise = float(share), scope, normalise

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """A forward pass more over the step, where all of its losses are compared. See the base class."""
        return compared_cost(params["scope"], ahead)

    def get_weighted_loss(
        self, losses: torch.Tensor, *, ctx: StepContext, model: Any = None, inputs: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Returns the mean of w_i l_i over this rank's B samples. See the base class."""
        labelled = rows_with_labels(inputs, losses.numel(), losses.device)
        everyone, counted, _, own = compared(losses, labelled, ctx, self.scope)
        kept = trimmed(everyone, self.share, counted)
        weights = (with_mean_one(kept, counted) if self.normalise else kept)[own]
        return (weights * losses).mean()
