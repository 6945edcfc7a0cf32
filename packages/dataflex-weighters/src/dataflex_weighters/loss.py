"""``loss``: weights from where a sample's loss stands between the least and the greatest of those it is compared with.

Sow et al., "Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining" (ICLR 2025),
arXiv 2502.06733. With f_i the G losses of the micro-batch, or of the step, over all ranks:

    h_i = 2 delta f_i / (max - min) - delta (max + min) / (max - min)      in [-delta, delta]
    U_i = min(h_i + delta, delta)    linupper: rising up to mid-range, flat above; easy samples count less
          1 - h_i^2 / delta^2        quadratic: both ends count less
          |h_i|                      extremes: the middle counts less
    w_i proportional to exp(U_i / r)                                       r the temperature

The paper's weights sum to 1 and multiply a sum; here they have mean 1 and multiply a mean, which is the same loss.
With ``level: source`` f is the mean loss of each source, and the rows of a source share its weight.

Cost: two small collectives per micro-batch on several ranks, none on one; ``scope: step`` a forward pass more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from dataflex.core.parameter_checks import one_of, positive, positive_or_null, require
from dataflex.core.registry import register_weighter
from dataflex.train.weighter.base_weighter import Weighter

from dataflex_weighters.comparing import SCOPES, compared, rows_with_labels, with_mean_one
from dataflex_weighters.sources import known_sources

if TYPE_CHECKING:
    from dataflex.train.trainer.weight_trainer import WeightTrainer

LEVELS = ("sample", "source")


def normalised_losses(losses: torch.Tensor, delta: float) -> torch.Tensor:
    """Returns h: (G,) losses mapped linearly so that the least is -delta and the greatest delta; they must differ."""
    low, high = losses.min(), losses.max()
    return delta * ((losses - low) - (high - losses)) / (high - low)  # h_i, both ends exact


def linupper(h: torch.Tensor, delta: float) -> torch.Tensor:
    """Returns U of LinUpper, (G,): rises up to the middle of the range and is flat above it."""
    return (h + delta).clamp(max=delta)  # U_i = min(h_i + delta, delta)


def quadratic(h: torch.Tensor, delta: float) -> torch.Tensor:
    """Returns U of Quadratic, (G,): 1 in the middle of the range, 0 at both ends."""
    return 1 - h.square() / delta**2  # U_i = 1 - h_i^2 / delta^2


def extremes(h: torch.Tensor, delta: float) -> torch.Tensor:
    """Returns U of Extremes, (G,): 0 in the middle of the range, delta at both ends."""
    return h.abs()  # U_i = |h_i|


UTILITIES: Mapping[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "linupper": linupper,
    "quadratic": quadratic,
    "extremes": extremes,
}
STRATEGIES = (*UTILITIES, "uniform")


def sample_weights(losses: torch.Tensor, strategy: str, delta: float = 1.0, temperature: float = 1.0) -> torch.Tensor:
    """Returns the weights: (G,) non-negative, with mean 1, without gradient.

    Args:
        losses: (G,) losses to compare; where all are equal, or none is there, every weight is 1.
        strategy: One of :data:`STRATEGIES`.
        delta: Half the range that the losses are mapped to.
        temperature: r; large values come close to equal weights.
    """
    losses = losses.detach()
    if strategy == "uniform" or losses.numel() == 0 or bool(losses.max() == losses.min()):
        return torch.ones_like(losses)
    utility = UTILITIES[strategy](normalised_losses(losses, delta), delta)
    below = utility - utility.max()  # of a tiny r, U / r would be infinite for the greatest U as well
    logits = torch.where(below == 0, below, below / temperature)
    return torch.softmax(logits, dim=0) * losses.numel()  # w_i of the paper, times G: mean 1


def source_level_weights(
    losses_G: torch.Tensor, sources_G: torch.Tensor, strategy: str, delta: float = 1.0, temperature: float = 1.0
) -> torch.Tensor:
    """Returns the weights: (G,) the same for all rows of a source, with mean 1, without gradient.

    Args:
        losses_G: (G,) losses.
        sources_G: (G,) the number of each one's source; the mean losses of the sources that occur are compared.
        strategy: One of :data:`STRATEGIES`.
        delta: Half the range that the mean losses are mapped to.
        temperature: r.
    """
    losses_G = losses_G.detach()
    _, place_G, rows_K = torch.unique(sources_G, return_inverse=True, return_counts=True)
    means_K = losses_G.new_zeros(len(rows_K)).index_add_(0, place_G, losses_G) / rows_K
    return with_mean_one(sample_weights(means_K, strategy, delta, temperature)[place_G])


def annealed(start: float | None, end: float, done: float) -> float:
    """Returns the temperature after a share ``done`` of the weighted steps: from ``start`` to ``end`` geometrically."""
    if start is None or done >= 1:
        return end
    return start if done <= 0 else math.exp(math.log(start) + done * (math.log(end) - math.log(start)))


@register_weighter("loss")
class LossWeighter(Weighter):
    """Weights from where a sample's loss stands among those of its batch (arXiv 2502.06733).

    Args:
        strategy: ``linupper`` (easy samples count less), ``quadratic`` (both ends count less), ``extremes`` (the middle
            counts less) or ``uniform`` (the plain mean).
        delta: Half the range that the losses are mapped to, > 0. The paper uses 1.
        temperature: r of the softmax, > 0; the larger, the closer to equal weights.
        temperature_start: r at the first weighted step; it goes to ``temperature`` at the last one, by the same factor
            in each step. Null: ``temperature`` all along.
        scope: What is compared: ``batch``, the micro-batch over all ranks; ``step``, all micro-batches of the step over
            all ranks, for a forward pass more.
        level: ``sample`` compares samples; ``source`` the mean losses of the source datasets.
        dataset: The train dataset, which must know its sources for ``level: source``.

    Raises:
        ConfigError: A parameter has another value; the message holds every problem.
    """

    draws = False

    def __init__(
        self,
        strategy: str = "linupper",
        delta: float = 1.0,
        temperature: float = 1.0,
        temperature_start: float | None = None,
        scope: str = "batch",
        level: str = "sample",
        dataset: Any = None,
    ) -> None:
        super().__init__()
        require(
            "loss weighter",
            one_of("strategy", strategy, STRATEGIES),
            positive("delta", delta),
            positive("temperature", temperature),
            positive_or_null("temperature_start", temperature_start, null="temperature"),
            one_of("scope", scope, SCOPES),
            one_of("level", level, LEVELS),
            known_sources(dataset) if level == "source" else None,
        )
        self.strategy, self.delta, self.temperature = strategy, float(delta), float(temperature)
        self.temperature_start = None if temperature_start is None else float(temperature_start)
        self.scope, self.level = scope, level

    @classmethod
    def needs_sources(cls, params: Mapping[str, Any]) -> bool:
        """With ``level: source``. See the base class."""
        return params.get("level") == "source"

    def get_weighted_loss(
        self, losses: torch.Tensor, *, ctx: WeightTrainer, model: Any = None, inputs: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Returns the mean of w_i l_i over this rank's B samples; the weights are constants, compared over all ranks.

        Every rank calls it for each micro-batch. Samples without labels take no part in the comparison.

        Args:
            losses: (B,) mean token loss of each sample.
            ctx: The trainer, for its accelerator.
            model: Not used.
            inputs: The micro-batch, for its labels.
        """
        if self.strategy == "uniform":
            return losses.mean()
        labelled = rows_with_labels(inputs, losses.numel(), losses.device)
        everyone, sources, own = compared(losses, labelled, ctx, self.scope, with_sources=self.level == "source")
        formula = (self.strategy, self.delta, self._temperature(ctx))
        if sources is None:
            found = sample_weights(everyone, *formula)
        else:
            found = source_level_weights(everyone, sources, *formula)
        weights = torch.zeros_like(losses)
        weights[labelled] = found[own]
        return (weights * losses).mean()

    def _temperature(self, ctx: WeightTrainer) -> float:
        if self.temperature_start is None:
            return self.temperature
        first, last = ctx.arguments.warmup_step, ctx.state.max_steps - 1
        done = (ctx.state.global_step - first) / max(1, last - first)
        return annealed(self.temperature_start, self.temperature, done)
