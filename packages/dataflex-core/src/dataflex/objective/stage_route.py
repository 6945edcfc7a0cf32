"""The loss of a micro-batch where rows have a loss of their own: pairs of answers, tagged answers.

The trainer underneath computes its loss as ever, metrics and all. What it ran of the model is kept meanwhile, and the
loss of each row is made of that: no second forward, and gradients go back through the one there was. To the formula a
row is a sample with one token.

Letters: B rows of the micro-batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from accelerate import DistributedType

from dataflex.core.errors import ComponentError
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
        with _kept(self._trainer, self._stage, model) as kept:
            found = compute(model, inputs, *args, **kwargs)
        losses_B = self._row_losses(kept, model, given)
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

    def _row_losses(self, kept: deque[tuple[str, Any]], model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
        stage, trainer = self._stage, self._trainer
        if not stage.forwards:
            again: Any = _again(kept)
            return stage.row_losses(trainer, again, inputs)
        with ExitStack() as stack:
            for name in stage.forwards:
                stack.enter_context(patch.object(trainer, name, _next(kept, name)))
            return stage.row_losses(trainer, model, inputs)


@contextmanager
def _kept(trainer: Any, stage: StageLoss, model: torch.nn.Module) -> Iterator[deque[tuple[str, Any]]]:
    """Yields what the trainer's methods return that run the model, or the model itself, in order."""
    kept: deque[tuple[str, Any]] = deque()
    inside: list[str] = []

    def keeping(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            inside.append(name)
            try:
                found = original(*args, **kwargs)
            finally:
                inside.pop()
            if not inside:  # what one of them calls is part of what it returns
                kept.append((name, found))
            return found

        return call

    with ExitStack() as stack:
        for name in stage.forwards:
            stack.enter_context(patch.object(trainer, name, keeping(name, getattr(trainer, name))))
        if not stage.forwards:
            stack.callback(model.register_forward_hook(lambda _, __, output: kept.append(("model", output))).remove)
        yield kept


def _next(kept: deque[tuple[str, Any]], name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not kept or kept[0][0] != name:
            raise ComponentError(
                f"the trainer did not call {name} where its loss does, so the loss of a row is not known -> use the "
                "trainer of the stage as it is"
            )
        return kept.popleft()[1]

    return call


def _again(kept: deque[tuple[str, Any]]) -> Callable[..., Any]:
    """Returns what stands in the model's place: it gives what the model gave to the trainer, call by call."""

    def call(**kwargs: Any) -> Any:
        if not kept:
            raise ComponentError(
                "the trainer ran the model less often than its loss does, so the loss of a row is not known -> use the "
                "trainer of the stage as it is"
            )
        return kept.popleft()[1]

    return call


def _as_tokens(losses_B: torch.Tensor) -> torch.Tensor:
    return torch.stack([losses_B.float(), torch.zeros_like(losses_B, dtype=torch.float32)], dim=1)


def _labels(rows: int, device: torch.device) -> torch.Tensor:
    return torch.tensor(LABELS, device=device).expand(rows, -1)
