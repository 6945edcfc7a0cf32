"""``focal``: samples with a low loss have smaller weights.

Lin, Goyal, Girshick, He and Dollar, "Focal Loss for Dense Object Detection" (ICCV 2017, arXiv 1708.02002), equation 4,
with the model's probability of a sample, the geometric mean of its tokens' e^-l, in the place of p:

    w_i = (1 - e^-l_i)^gamma

The weight is a constant. The paper differentiates it too, which changes the gradient but not where it is 0. A text of
natural length never comes near p = 1, so the weights of a model that is not overfitted lie close together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from dataflex.core.cost import Ahead, Cost
from dataflex.core.parameter_checks import at_least, flag, require
from dataflex.core.registry import register_weighter
from dataflex.train.weighter.base_weighter import StepContext, Weighter

from dataflex_weighters.parts.compared_samples import compared, rows_with_labels, with_mean_one


def focal_weights(losses_G: torch.Tensor, gamma: float) -> torch.Tensor:
    """Returns the weights: (G,) in [0, 1], without gradient; 1 everywhere for gamma 0.

    Args:
        losses_G: (G,) mean token losses, at least 0.
        gamma: How fast the weight falls with the probability.
    """
    return (-torch.expm1(-losses_G.detach())).pow(gamma)  # (1 - p)^gamma, equation 4


@register_weighter("focal")
class FocalWeighter(Weighter):
    """Weights (1 - e^-loss)^gamma: samples with a low loss count less.

    Args:
        gamma: At least 0; 0 weighs all alike, and the larger, the less easy samples count.
        normalise: Whether the weights are scaled to mean 1 over the micro-batch of all ranks.

    Raises:
        ConfigError: A parameter has another value; the message holds every problem.
    """

    draws = False

    def __init__(self, gamma: float = 2.0, normalise: bool = False) -> None:
        super().__init__()
        require("focal weighter", at_least("gamma", gamma, 0), flag("normalise", normalise))
        self.gamma, self.normalise = float(gamma), normalise

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """The losses are those of training. See the base class."""
        return Cost()

    def get_weighted_loss(
        self, losses: torch.Tensor, *, ctx: StepContext, model: Any = None, inputs: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Returns the mean of w_i l_i over this rank's B samples. See the base class."""
        if not self.normalise:
            return (focal_weights(losses, self.gamma) * losses).mean()
        labelled = rows_with_labels(inputs, losses.numel(), losses.device)
        everyone, counted, _, own = compared(losses, labelled, ctx, "batch")
        weights = with_mean_one(focal_weights(everyone, self.gamma), counted)[own]
        return (weights * losses).mean()
