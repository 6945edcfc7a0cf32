"""What is asked of a training stage that compares answers: the loss of each row of a batch.

A row is what the train dataset has under one number: a pair of answers (reward models, DPO), or one answer with a tag
(KTO). Letters: B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, ClassVar

import torch


class Use(Enum):
    """What is done with the losses of rows: they are looked at one by one, or weighed in their batch."""

    SCORE = "scored"
    WEIGH = "weighed"


class StageLoss:
    """The loss of each row, as a trainer has it. It holds nothing: the trainer does.

    Attributes:
        name: The stage: ``dpo``, ``rm`` or ``kto``.
        stands_on: Names of the trainer's methods that :meth:`row_losses` uses, or whose text it repeats. A subclass
            that overrides one of them trains on another loss.
        forwards: Those of them that run a model, of the ones that :meth:`row_losses` calls itself: in training, what
            they returned to the trainer is taken in their place. Without any, it is what the model returned.
        reference: The trainer's attribute with the reference model, where :meth:`row_losses` runs it: in training, what
            it returned to the trainer is taken in its place.
    """

    name: ClassVar[str]
    stands_on: ClassVar[tuple[str, ...]]
    forwards: ClassVar[tuple[str, ...]] = ()
    reference: ClassVar[str | None] = None

    def rows_in(self, inputs: Mapping[str, Any]) -> int:
        """Returns B, the rows of a batch.

        Args:
            inputs: A batch as the trainer's collator makes it.
        """
        raise NotImplementedError

    def row_losses(self, trainer: Any, model: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Returns the loss that each row has in its batch: (B,), with gradients where they are enabled.

        Their mean is what the trainer's ``compute_loss`` returns of the batch. Called by every rank at
        once, as training is: what the trainer gathers over ranks is gathered.

        Args:
            trainer: The trainer.
            model: The model, wrapped or not; another one of the same kind may be given.
            inputs: A batch on the model's device; it is not changed.
        """
        raise NotImplementedError

    def alone(self, trainer: Any, model: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Returns the loss that each row would have in a batch of its own: (B,). Makes no collective call.

        It is :meth:`row_losses` where rows of a batch do not meet.
        """
        return self.row_losses(trainer, model, inputs)

    def refused(self, trainer: Any, use: Use) -> str | None:
        """Returns why something cannot be done with losses under the trainer's settings; None where it can.

        Args:
            trainer: The trainer.
            use: What is to be done.
        """
        return None

    def remark(self, trainer: Any) -> str | None:
        """Returns what a user should know of the loss that the trainer computes; None for nothing."""
        return None


def cut(inputs: Mapping[str, Any], row: int, rows: int) -> dict[str, Any]:
    """Returns one row of a batch, with the batch's padding: of what has one entry for each row."""
    each: dict[str, Any] = {}
    for name, value in inputs.items():
        by_row = len(value) == rows if isinstance(value, list) else _is_by_row(value, rows)
        each[name] = value[row : row + 1] if by_row else value
    return each


def _is_by_row(value: Any, rows: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == rows
