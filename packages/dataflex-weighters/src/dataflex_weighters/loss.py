"""``loss``: weights from a sample's place between the least and the greatest loss of those it is compared with.

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
from typing import Any

import torch
from dataflex.core.cost import Ahead, Cost
from dataflex.core.parameter_checks import one_of, positive, positive_or_null, require
from dataflex.core.registry import register_weighter
from dataflex.train.weighter.base_weighter import StepContext, Weighter

from dataflex_weighters.parts.compared_samples import (
    SCOPES,
    compared,
    compared_cost,
    rows_with_labels,
    warn_where_alone,
    with_mean_one,
)
from dataflex_weighters.parts.source_checks import known_sources

LEVELS = ("sample", "source")


def normalised_losses(losses: torch.Tensor, delta: float, counted: torch.Tensor | None = None) -> torch.Tensor:
    """Returns h: (G,) losses mapped linearly so that the least is -delta and the greatest delta; they must differ.

    Args:
        losses: (G,) losses.
        delta: Half the range that they are mapped to.
        counted: (G,) which of them count; None for all. The values of the others have no meaning.
    """
    low, high = _ends(losses, counted)
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


def _ends(losses: torch.Tensor, counted: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    if counted is None:
        return losses.min(), losses.max()
    return torch.where(counted, losses, torch.inf).min(), torch.where(counted, losses, -torch.inf).max()


def sample_weights(
    losses: torch.Tensor,
    strategy: str,
    delta: float = 1.0,
    temperature: float = 1.0,
    counted: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the weights: (G,) non-negative, with mean 1, without gradient. The host does not wait for the device.

    Args:
        losses: (G,) losses to compare; where all are equal, or none is there, every weight is 1.
        strategy: One of :data:`STRATEGIES`.
        delta: Half the range that the losses are mapped to.
        temperature: r; large values come close to equal weights.
        counted: (G,) which of them are compared; None for all. The others get 0.
    """
    losses = losses.detach()
    if counted is None:
        counted = torch.ones_like(losses, dtype=torch.bool)
    equal = counted.to(losses.dtype)
    if strategy == "uniform" or losses.numel() == 0:
        return equal
    low, high = _ends(losses, counted)
    utility = UTILITIES[strategy](normalised_losses(losses, delta, counted), delta)
    below = utility - torch.where(counted, utility, -torch.inf).max()  # of a tiny r, U / r is infinite
    logits = torch.where(below == 0, below, below / temperature)
    shares = torch.softmax(torch.where(counted, logits, -torch.inf), dim=0)
    alike = (high == low) | ~counted.any()  # also where there is nothing to compare
    return torch.where(alike, equal, shares * counted.sum())  # w_i of the paper, times their number: mean 1


def source_level_weights(
    losses_G: torch.Tensor,
    sources_G: torch.Tensor,
    strategy: str,
    delta: float = 1.0,
    temperature: float = 1.0,
    counted_G: torch.Tensor | None = None,
    sources: int | None = None,
) -> torch.Tensor:
    """Returns the weights: (G,) the same for all rows of a source, with mean 1, without gradient.

    Args:
        losses_G: (G,) losses.
        sources_G: (G,) the number of each one's source; the mean losses of the sources that occur are compared.
        strategy: One of :data:`STRATEGIES`.
        delta: Half the range that the mean losses are mapped to.
        temperature: r.
        counted_G: (G,) which of them are compared; None for all. The others get 0.
        sources: K, how many sources there are; None reads it from ``sources_G``.
    """
    losses_G = losses_G.detach()
    if counted_G is None:
        counted_G = torch.ones_like(losses_G, dtype=torch.bool)
    K = int(sources_G.max()) + 1 if sources is None else sources
    of_source_KG = (sources_G == torch.arange(K, device=sources_G.device)[:, None]) & counted_G
    rows_K = of_source_KG.sum(dim=1)
    means_K = torch.where(of_source_KG, losses_G, 0.0).sum(dim=1) / rows_K.clamp(min=1)
    weights_K = sample_weights(means_K, strategy, delta, temperature, rows_K > 0)
    return with_mean_one(weights_K[sources_G], counted_G)


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
    asks = "losses of a step if scope=step"

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
        self._began = False

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """A forward pass more over the step, where all of its losses are compared. See the base class."""
        return compared_cost(params["scope"], ahead)

    @classmethod
    def needs_sources(cls, params: Mapping[str, Any]) -> bool:
        """With ``level: source``. See the base class."""
        return params.get("level") == "source"

    def get_weighted_loss(
        self, losses: torch.Tensor, *, ctx: StepContext, model: Any = None, inputs: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Returns the mean of w_i l_i over this rank's B samples; the weights are constants, compared over all ranks.

        Every rank calls it for each micro-batch. Samples without labels take no part in the comparison.

        Args:
            losses: (B,) mean token loss of each sample.
            ctx: The step, for its accelerator.
            model: Not used.
            inputs: The micro-batch, for its labels.
        """
        if self.strategy == "uniform":
            return losses.mean()
        labelled = rows_with_labels(inputs, losses.numel(), losses.device)
        found = compared(losses, labelled, ctx, self.scope, with_sources=self.level == "source")
        if not self._began:
            self._began = True
            warn_where_alone(self.name, found.losses.numel(), self.scope)
        formula = (self.strategy, self.delta, self._temperature(ctx), found.counted)
        if found.sources is None:
            weights_G = sample_weights(found.losses, *formula)
        else:
            weights_G = source_level_weights(found.losses, found.sources, *formula, sources=len(ctx.source_names))
        return (weights_G[found.own] * losses).mean()

    def _temperature(self, ctx: StepContext) -> float:
        if self.temperature_start is None:
            return self.temperature
        first, last = ctx.arguments.warmup_step, ctx.state.max_steps - 1
        done = (ctx.state.global_step - first) / max(1, last - first)
        return annealed(self.temperature_start, self.temperature, done)
