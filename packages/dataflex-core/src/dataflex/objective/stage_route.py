"""The loss of a micro-batch where rows have a loss of their own: pairs of answers, tagged answers.

The trainer underneath computes its loss as ever, metrics and all. What it ran of the model is kept meanwhile, and the
loss of each row is made of that: no second forward, and gradients go back through the one there was. To the formula a
row is a sample with one token.

Letters: B rows of the micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from accelerate import DistributedType

from dataflex.objective.kept_forwards import KeptForwards
from dataflex.objective.measuring import Measuring
from dataflex.objective.micro_batch_loss import MicroBatchLoss
from dataflex.upstream.stage_interface import StageLoss

LABELS = (-100, 0)
"""Of a row: a prompt that is not predicted, and one token that is."""


def as_samples(loss: StageLoss, batches: Sequence[Mapping[str, Any]], device: torch.device) -> list[dict[str, Any]]:
    """Returns micro-batches with a sample of one token for each row, for what counts samples and labels."""
    return [{"labels": _labels(loss.rows_in(batch), device)} for batch in batches]


class StageRoute:
    """Computes the loss of training micro-batches.

    Args:
        trainer: The trainer.
        stage: The loss of its rows.
        loss: Is asked for the loss.
        measuring: Shows the losses to who looks, if anybody does.
    """

    def __init__(self, trainer: Any, stage: StageLoss, loss: MicroBatchLoss, measuring: Measuring | None) -> None:
        self._trainer, self._stage, self._loss, self._measuring = trainer, stage, loss, measuring

    def compute(self, compute: Callable[..., Any], model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Computes the loss of the present micro-batch, as ``Objective.compute_loss`` is to."""
        loss, weighing, given = self._loss, self._loss.weighing, dict(inputs)
        if weighing is not None and weighing.active is not None:  # with labels of samples, as those of tokens are not
            weighing.inputs = given | {"labels": _labels(self._stage.rows_in(given), self._trainer.args.device)}
        loss.begin(kwargs.get("num_items_in_batch"))
        kept = KeptForwards(self._trainer, self._stage, model)
        with kept.keeping():
            found = compute(model, inputs, *args, **kwargs)
        losses_B = self._row_losses(kept, given)
        losses_B2, labels_B2 = _as_tokens(losses_B), _labels(len(losses_B), losses_B.device)
        loss.note(losses_B2)
        part = loss.of_tokens(losses_B2, labels_B2, losses_B2.sum)
        if self._measuring is not None:
            self._measuring.add(loss.losses, None, {"labels": labels_B2})
        deepspeed = self._trainer.accelerator.distributed_type == DistributedType.DEEPSPEED
        if weighing is not None and deepspeed and loss.context.is_last_micro_batch:
            weighing.checks.examine()  # its backward pass makes the step
        if part is None:
            return found
        return (part, *found[1:]) if isinstance(found, tuple) else part

    def _row_losses(self, kept: KeptForwards, inputs: Mapping[str, Any]) -> torch.Tensor:
        stage, trainer = self._stage, self._trainer
        with ExitStack() as stack:
            for name in stage.forwards:
                stack.enter_context(patch.object(trainer, name, kept.method(name)))
            if stage.reference is not None:
                stack.enter_context(patch.object(trainer, stage.reference, kept.model))
            again: Any = kept.model
            losses_B = stage.row_losses(trainer, again, inputs)
        kept.require_all_taken()
        return losses_B


def _as_tokens(losses_B: torch.Tensor) -> torch.Tensor:
    return torch.stack([losses_B.float(), torch.zeros_like(losses_B, dtype=torch.float32)], dim=1)


def _labels(rows: int, device: torch.device) -> torch.Tensor:
    return torch.tensor(LABELS, device=device).expand(rows, -1)
