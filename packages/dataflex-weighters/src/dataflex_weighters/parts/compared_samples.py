"""Samples that are compared with each other: the losses of a micro-batch, or of a whole step, over all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from dataflex.core.cost import NOTHING, Ahead, Cost, Work
from dataflex.core.errors import ComponentError
from dataflex.core.ranks.gather_samples import gather_samples
from dataflex.model.label_logits import IGNORED
from dataflex.utils.logging import logger

if TYPE_CHECKING:
    from dataflex.train.weighter.base_weighter import StepContext

SCOPES = ("batch", "step")


class Compared(NamedTuple):
    """The samples of all ranks, in the same order on every rank.

    Attributes:
        losses: (G,) losses without gradient; any number where ``counted`` is False.
        counted: (G,) whether each is a sample with a label: the others take no part in the comparison. They keep their
            places: to remove them, the host would have to wait for their number.
        sources: (G,) the number of each one's source; None where it was not asked for.
        own: Where those of this rank's micro-batch stand.
    """

    losses: torch.Tensor
    counted: torch.Tensor
    sources: torch.Tensor | None
    own: slice


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


def compared(
    losses_B: torch.Tensor, labelled_B: torch.Tensor, ctx: StepContext, scope: str, with_sources: bool = False
) -> Compared:
    """Returns the samples that this rank's B are compared with. Every rank calls it for each micro-batch.

    Args:
        losses_B: (B,) losses of the micro-batch.
        labelled_B: (B,) whether each has a label.
        ctx: The step, and what it holds.
        scope: ``batch``: the micro-batch of every rank. ``step``: all micro-batches of the step of every rank, whose
            losses cost a forward pass more. Where a step has one micro-batch, ``step`` is ``batch``.
        with_sources: Whether sources are needed.

    Raises:
        ComponentError: Sources or a step are needed and the batches do not say which rows they hold.
    """
    several = ctx.accelerator.num_processes > 1
    if scope == "step" and ctx.micro_batches > 1:
        step, own = ctx.step_losses()
        losses, counted, rows = step.losses, step.labelled, step.rows
        width = ctx.most_samples * ctx.micro_batches if several else 0
    else:
        losses, counted, rows = losses_B, labelled_B, ctx.batch_rows if with_sources else None
        own, width = slice(0, losses.numel()), ctx.most_samples if several else 0
    everyone, all_counted, mine = gather_samples(losses, counted, ctx.accelerator, width)
    sources = None
    if with_sources:
        if rows is None:
            raise ComponentError("the batches hold no row numbers -> use a data collator that returns a dict")
        own_sources = ctx.sources_of(rows).to(losses.dtype)
        sources = gather_samples(own_sources, counted, ctx.accelerator, width)[0].long()
    return Compared(everyone, all_counted, sources, slice(mine.start + own.start, mine.start + own.stop))


def warn_where_alone(who: str, samples: int, scope: str) -> None:
    """Warns where a sample is compared with no other, so that its weight is 1. For the first weighted micro-batch.

    Args:
        who: The weighter, for the message.
        samples: G, those that were compared.
        scope: One of :data:`SCOPES`.
    """
    if samples != 1:
        return
    one, way_out = "step", "gradient_accumulation_steps"
    if scope == "batch":
        one, way_out = "micro-batch", "set scope: step"
    logger.warning(
        "%s: a %s has one sample, which is compared with no other, so every weight is 1 -> raise "
        "per_device_train_batch_size or %s",
        who,
        one,
        way_out,
    )


def compared_cost(scope: str, ahead: Ahead) -> Cost:
    """Returns what :func:`compared` costs at each step."""
    return Cost(step=Work(forward=ahead.step if scope == "step" and ahead.micro_batches > 1 else NOTHING))


def with_mean_one(weights_G: torch.Tensor, counted_G: torch.Tensor | None = None) -> torch.Tensor:
    """Returns the weights divided by their mean; unchanged where that is 0, or there are none.

    Args:
        weights_G: (G,) weights.
        counted_G: (G,) which of them the mean is of; None for all. The others become 0.
    """
    if counted_G is None:
        counted_G = torch.ones_like(weights_G, dtype=torch.bool)
    weights_G = torch.where(counted_G, weights_G, 0.0)
    mean = weights_G.sum() / counted_G.sum().clamp(min=1)
    return weights_G / torch.where(mean == 0, 1.0, mean)
