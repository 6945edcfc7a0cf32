"""What the training loop of ``transformers`` does to the loss of a micro-batch, and how that is undone: the one place.

A loss of the whole step is a sum over its micro-batches and ranks; each rank computes the part of one micro-batch. The
loop then multiplies that part by the ranks where it counts tokens over all of them, or divides it by the micro-batches
where it counts none, and whatever runs the ranks averages their gradients and their logged losses. A part that is
multiplied by :func:`undone` before adds up to the loss of the step, whichever of these a run does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import transformers
from packaging.version import Version

if TYPE_CHECKING:
    from transformers import Trainer

INSTALLED = Version(transformers.__version__)
COUNT_DECIDES = Version("4.53")
"""From here on a model that takes a count is averaged over micro-batches where the loop gives it none."""
COUNTS_MICRO_BATCHES = Version("4.55")
"""From here on the average is over the micro-batches that a step has; before, over gradient_accumulation_steps, also in
the shorter last step of an epoch."""


@dataclass(frozen=True)
class Loop:
    """The circumstances of a micro-batch.

    Attributes:
        counted: Whether the loop gives the number of the step's labels.
        takes_count: Whether it gives it to the model.
        own_loss: Whether the loss is computed by a ``compute_loss_func``.
        averages_tokens: ``average_tokens_across_devices``: whether that number is one of all ranks.
        ranks: How many there are.
        accumulation: ``gradient_accumulation_steps``.
        micro_batches: What this step has of them.
    """

    counted: bool
    takes_count: bool
    own_loss: bool
    averages_tokens: bool
    ranks: int
    accumulation: int
    micro_batches: int


def loop_of(trainer: Trainer, counted: bool, micro_batches: int) -> Loop:
    """Returns the circumstances of a micro-batch of a trainer.

    Args:
        trainer: The trainer.
        counted: Whether it was given the number of the step's labels.
        micro_batches: What the step has of them.
    """
    return Loop(
        counted,
        bool(trainer.model_accepts_loss_kwargs),
        trainer.compute_loss_func is not None,
        bool(trainer.args.average_tokens_across_devices),
        trainer.accelerator.num_processes,
        trainer.args.gradient_accumulation_steps,
        micro_batches,
    )


def counts_first(trainer: Trainer) -> bool:
    """Returns whether the loop counts the label of a row's first token, which is never predicted, for a step.

    Later releases of ``transformers`` leave it out for causal models, and their trainers say so.
    """
    return not vars(trainer).get("_loss_shifts_labels", False)


def scale(loop: Loop, release: Version = INSTALLED) -> float:
    """Returns what the loop multiplies the loss of a micro-batch by before the backward pass.

    Args:
        loop: The circumstances.
        release: Of ``transformers``.
    """
    given = loop.takes_count or loop.own_loss
    factor = float(loop.ranks) if loop.counted and given and loop.averages_tokens else 1.0
    ignored = not loop.takes_count or (not loop.counted and release >= COUNT_DECIDES)
    if ignored and not loop.own_loss:
        factor /= loop.micro_batches if release >= COUNTS_MICRO_BATCHES else loop.accumulation
    return factor


def undone(loop: Loop) -> float:
    """Returns what a micro-batch's part of the step's loss is multiplied by: the parts then add up over all ranks."""
    return loop.ranks / scale(loop)
