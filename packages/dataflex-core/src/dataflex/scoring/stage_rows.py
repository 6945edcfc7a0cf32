"""Rows whose loss is not that of their tokens: pairs of answers, and answers with a tag.

Who scores rows is given a collator. That of a stage with a loss of its own carries this loss with it, so that it is the
one that every pass takes, of whatever model; what needs the tokens of a text refuses it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from dataflex.core.errors import ComponentError

Losses = Callable[[torch.nn.Module, Mapping[str, Any]], torch.Tensor]
"""``losses(model, inputs) -> (B,)``, the loss that each row would have in a batch of its own."""


class StageCollator:
    """A data collator, and the loss of the rows that it makes batches of.

    Args:
        collate: The collator.
        stage: ``dpo``, ``rm`` or ``kto``.
        rows_in: Returns how many rows a batch has.
        losses: Computes the loss of each. It must make no collective call.
    """

    def __init__(
        self,
        collate: Callable[[list[Any]], Mapping[str, Any]],
        stage: str,
        rows_in: Callable[[Mapping[str, Any]], int],
        losses: Losses,
    ) -> None:
        self.collate, self.stage, self.rows_in, self.losses = collate, stage, rows_in, losses

    def __call__(self, rows: list[Any]) -> Mapping[str, Any]:
        """Returns a batch of rows."""
        return self.collate(rows)

    def with_collate(self, collate: Callable[[list[Any]], Mapping[str, Any]]) -> StageCollator:
        """Returns the same rows and losses with another way to make a batch."""
        return StageCollator(collate, self.stage, self.rows_in, self.losses)


def refuse_stage(collator: Any, what: str) -> None:
    """Refuses rows that are no texts.

    Args:
        collator: The collator that was given.
        what: What is to be made of the rows, in words.

    Raises:
        ComponentError: They are not.
    """
    if isinstance(collator, StageCollator):
        raise stage_refusal(collator.stage, what)


def stage_refusal(stage: str, what: str) -> ComponentError:
    """Returns the error of who asks rows that are no texts for what only texts have."""
    rows = "tagged answers" if stage == "kto" else "pairs of answers"
    return ComponentError(
        f"the rows of stage {stage} are {rows}, and {what} are those of texts -> use a strategy that scores rows by "
        "their loss, or by none"
    )
