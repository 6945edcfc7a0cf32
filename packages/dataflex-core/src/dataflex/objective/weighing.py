"""Asking the weighter of a run: what it may return, who is blamed, and what is kept of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dataflex.core.errors import ComponentError, blaming
from dataflex.interfaces.weighter import Weighter, WeightsSamples
from dataflex.objective.parts import WeighterPart
from dataflex.objective.step_checks import StepChecks


class Weighing:
    """The weighter while a run trains.

    Args:
        part: The weighter.
        context: Its ``ctx``.

    Attributes:
        part: The weighter.
        checks: What must hold before the optimizer steps.
        active: The weighter that weighs the present micro-batch; None where its loss is not weighed.
        inputs: The micro-batch, a sample in each row.
        weighed: Whether it was asked since :meth:`by` was entered.
        factors: (S,) factors of the losses of the micro-batch's samples in the loss of the step, once that is computed.
    """

    def __init__(self, part: WeighterPart, context: Any) -> None:
        self.part = part
        self.checks = StepChecks()
        self.active: WeightsSamples | None = None
        self.inputs: Any = None
        self.weighed = False
        self.factors = torch.empty(0)
        self._context = context

    @contextmanager
    def by(self, weighter: WeightsSamples) -> Iterator[None]:
        """Inside of it, each sample's loss is weighed with ``weighter``."""
        self.active, self.weighed = weighter, False
        try:
            yield
        finally:
            self.active, self.inputs = None, None

    @property
    def who(self) -> str:
        """The weighter and the step, for messages."""
        return self.part.at(self._context.state.global_step)

    @property
    def left_out(self) -> int:
        """How many numbers it left out of what it remembers."""
        return self.part.weighter.left_out if isinstance(self.part.weighter, Weighter) else 0

    def weigh(self, losses_S: torch.Tensor) -> torch.Tensor:
        """Returns the scalar that the active weighter makes of the (S,) losses.

        Raises:
            ComponentError: It is no number that depends on the losses. Whether it is finite is seen after the step's
                last micro-batch.
        """
        assert self.active is not None
        with blaming(self.who):
            scalar = self.active.get_weighted_loss(
                losses_S, ctx=self._context, model=self._context.model, inputs=self.inputs
            )
        if not isinstance(scalar, torch.Tensor) or scalar.numel() != 1:
            shape = tuple(scalar.shape) if isinstance(scalar, torch.Tensor) else type(scalar).__name__
            raise ComponentError(f"{self.who} returned {shape}; expected one number, as losses.mean() is")
        if not scalar.requires_grad:
            raise ComponentError(
                f"{self.who} returned a number that does not depend on losses, so nothing can be learnt"
            )
        who, found, given_S = self.who, scalar.detach().reshape(()), losses_S.detach()
        self.checks.expect(
            found.isfinite(),
            lambda: ComponentError(f"{who} returned {found.item()}; the losses it was given: {given_S.tolist()}"),
        )
        return scalar.reshape(())
