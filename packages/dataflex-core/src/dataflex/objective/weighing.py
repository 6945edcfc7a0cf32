"""Asking the weighter of a run: what it may return, who is blamed, and what is kept of its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from dataflex.core.errors import ComponentError, blaming
from dataflex.core.parameter_checks import is_number
from dataflex.interfaces.weighter import MicroBatch, Weighter, WeightsSamples
from dataflex.objective.label_counts import predicted
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
        batch: The micro-batch as the model gets it, with its labels.
        weighed: Whether it was asked since :meth:`by` was entered.
        factors: (S,) factors of the losses of the micro-batch's samples in the loss of the step, once that is computed.
        mean_token: Z of the step, where the weighter weighs tokens.
    """

    def __init__(self, part: WeighterPart, context: Any) -> None:
        self.part = part
        self.checks = StepChecks()
        self.active: WeightsSamples | None = None
        self.inputs: Any = None
        self.batch: Any = None
        self.weighed = False
        self.factors = torch.empty(0)
        self.mean_token: torch.Tensor | float = 1.0
        self._context = context

    @contextmanager
    def by(self, weighter: WeightsSamples) -> Iterator[None]:
        """Inside of it, each sample's loss is weighed with ``weighter``."""
        self.active, self.weighed = weighter, False
        try:
            yield
        finally:
            self.active, self.inputs, self.batch = None, None, None

    @property
    def who(self) -> str:
        """The weighter and the step, for messages."""
        return self.part.at(self._context.state.global_step)

    @property
    def left_out(self) -> int:
        """How many numbers it left out of what it remembers."""
        return self.part.weighter.left_out if isinstance(self.part.weighter, Weighter) else 0

    @property
    def of_tokens(self) -> Weighter | None:
        """The active weighter where it weighs tokens; else None."""
        found = self.active
        return found if isinstance(found, Weighter) and found.weighs_tokens else None

    def begin_step(self, batches: Sequence[MicroBatch]) -> None:
        """Asks a weighter of tokens for the mean weight of the step. Collective.

        Args:
            batches: This rank's micro-batches of the step.

        Raises:
            ComponentError: It is no number of 0 or more. One on the device is looked at after the last micro-batch.
        """
        weighter = self.part.weighter
        if not isinstance(weighter, Weighter) or not weighter.weighs_tokens:
            return
        with blaming(self.who):
            found = weighter.mean_token_weight(batches, ctx=self._context)
        who = f"the mean_token_weight of {self.who}"
        if isinstance(found, torch.Tensor):
            if found.numel() != 1:
                raise ComponentError(f"{who} has shape {tuple(found.shape)}; expected one number")
            found = found.detach().reshape(())
            self.checks.expect(
                found.isfinite() & (found >= 0), lambda: ComponentError(f"{who} is {float(found)}; expected 0 or more")
            )
        elif not (is_number(found) and 0 <= found < math.inf):
            raise ComponentError(f"{who} is {found!r}; expected a number of 0 or more")
        self.mean_token = found

    def weigh_tokens(self, losses_BT: torch.Tensor) -> torch.Tensor:
        """Returns the (B, T) weights that the active weighter gives the tokens of the micro-batch.

        Raises:
            ComponentError: It gives something else. Whether they are finite is seen after the step's last micro-batch.
        """
        weighter = self.of_tokens
        assert weighter is not None
        with blaming(self.who):
            found = weighter.token_weights(losses_BT, ctx=self._context, model=self._context.model, inputs=self.batch)
        if not isinstance(found, torch.Tensor) or found.shape != losses_BT.shape:
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise ComponentError(
                f"the token_weights of {self.who} returned {shape}; expected a weight for each position: "
                f"{tuple(losses_BT.shape)}"
            )
        who, found = self.who, found.detach().to(losses_BT)
        there_BT = predicted(self.batch["labels"].to(found.device))
        self.checks.expect(
            (found.isfinite() | ~there_BT).all(),
            lambda: ComponentError(f"the token_weights of {who} hold a number that is NaN or infinite"),
        )
        return found

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
