"""What must hold in a step, looked at once, before the optimizer steps.

Asking a device whether a number is finite makes the host wait for all the work that stands before the answer. So the
micro-batches leave their answers on the device, and the host reads them together after the step's last one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from dataflex.core.errors import DataflexError


class StepChecks:
    """The answers of the step so far, each with the error that a wrong one stands for."""

    def __init__(self) -> None:
        self._answers: list[torch.Tensor] = []
        self._errors: list[Callable[[], DataflexError]] = []

    def expect(self, holds: torch.Tensor, error: Callable[[], DataflexError]) -> None:
        """Notes what must hold.

        Args:
            holds: A bool of no dimensions, on any device.
            error: Makes the error to raise where it does not; it may read from the device.
        """
        self._answers.append(holds.detach())
        self._errors.append(error)

    def examine(self) -> None:
        """Reads the answers, once, and forgets them. Called on each rank for itself.

        Raises:
            DataflexError: The error of the first one that does not hold.
        """
        answers, errors = self._answers, self._errors
        self._answers, self._errors = [], []
        if not answers:
            return
        device = answers[-1].device
        found = torch.stack([answer.to(device) for answer in answers]).tolist()
        for holds, error in zip(found, errors, strict=True):
            if not holds:
                raise error()
