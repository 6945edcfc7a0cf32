"""``loss``: weights from where a sample's loss stands between the least and the greatest of its micro-batch.

Sow et al., "Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining" (ICLR 2025),
arXiv 2502.06733. With f_i the G losses of the micro-batch over all ranks:

    h_i = 2 delta f_i / (max - min) - delta (max + min) / (max - min)      in [-delta, delta]
    U_i = min(h_i + delta, delta)    linupper: rising up to mid-range, flat above; easy samples count less
          1 - h_i^2 / delta^2        quadratic: both ends count less
          |h_i|                      extremes: the middle counts less
    w_i proportional to exp(U_i / r)                                       r the temperature

The paper's weights sum to 1 and multiply a sum; here they have mean 1 and multiply a mean, which is the same loss.
Losses are compared inside one micro-batch of all ranks, not over the micro-batches of an accumulated step.
Cost: two small collectives per micro-batch on several ranks, none on one. Not covered: the paper's annealing of r.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from dataflex.core.errors import InvalidConfigError, Problem, nearest
from dataflex.core.registry import register_weighter
from dataflex.train.weighter.base_weighter import Weighter
from dataflex.train.weighter.gather import gather_losses

if TYPE_CHECKING:
    from dataflex.train.trainer.weight_trainer import WeightTrainer

IGNORED = -100  # the label that transformers and torch leave out of the loss


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
    return torch.softmax(utility / temperature, dim=0) * losses.numel()  # w_i of the paper, times G: mean 1


def rows_with_labels(inputs: Mapping[str, torch.Tensor], rows: int, device: torch.device) -> torch.Tensor:
    """Returns (B,) bool: whether the sample has a label to predict. The first token is predicted from nothing.

    Args:
        inputs: The micro-batch; without ``labels`` in it, every sample counts.
        rows: B.
        device: Where the result is needed.
    """
    labels = inputs.get("labels")
    if labels is None:
        return torch.ones(rows, dtype=torch.bool, device=device)
    return (labels[:, 1:] != IGNORED).any(dim=1).to(device)


@register_weighter("loss")
class LossWeighter(Weighter):
    """Weights from where a sample's loss stands in its micro-batch (arXiv 2502.06733).

    Args:
        strategy: ``linupper`` (easy samples count less), ``quadratic`` (both ends count less), ``extremes`` (the middle
            counts less) or ``uniform`` (the plain mean).
        delta: Half the range that the losses are mapped to, > 0. The paper uses 1.
        temperature: r of the softmax over the micro-batch, > 0; the larger, the closer to equal weights.

    Raises:
        ConfigError: A parameter has another value; the message holds every problem.
    """

    def __init__(self, strategy: str = "linupper", delta: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        problems = [*_strategy_problems(strategy), *_positive("delta", delta), *_positive("temperature", temperature)]
        if problems:
            raise InvalidConfigError(problems)
        self.strategy, self.delta, self.temperature = strategy, float(delta), float(temperature)

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
        everyone, own = gather_losses(losses[labelled], ctx.accelerator)
        weights = torch.zeros_like(losses)
        weights[labelled] = sample_weights(everyone, self.strategy, self.delta, self.temperature)[own]
        return (weights * losses).mean()


def _strategy_problems(strategy: object) -> list[Problem]:
    if strategy in STRATEGIES:
        return []
    hint = nearest(str(strategy), STRATEGIES)
    allowed = " | ".join(STRATEGIES)
    return [Problem("strategy of the loss weighter", f"found {strategy!r}, allowed: {allowed}", hint)]


def _positive(key: str, value: object) -> list[Problem]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and math.isfinite(value) and value > 0:  # type: ignore[arg-type,operator]  # number holds
        return []
    return [Problem(f"{key} of the loss weighter", f"found {value!r}, allowed: a finite number above 0")]
