"""Results of batches on their way from the device to the CPU.

To copy the result of each batch is to wait for the device after each: it then stands idle while the next batch is put
together. So results wait on the device until some megabytes have come together.
"""

from __future__ import annotations

import torch

_KEPT_NUMBERS = 2**20
"""Numbers that wait on the device before they go to the CPU: 4 MB."""


class OnTheCPU:
    """Values of batches, moved to the CPU a few at a time, as a copy of each one would keep the device waiting."""

    def __init__(self) -> None:
        self._waiting: list[torch.Tensor] = []
        self._numbers = 0  # of those that wait
        self._there: list[torch.Tensor] = []

    def add(self, values_B: torch.Tensor) -> None:
        """Takes the values of a batch."""
        self._waiting.append(values_B.detach())
        self._numbers += values_B.numel()
        if self._numbers >= _KEPT_NUMBERS:
            self._move()

    def joined(self) -> torch.Tensor:
        """Returns all values: (n, ...) on the CPU."""
        self._move()
        return torch.cat(self._there) if self._there else torch.empty(0)

    def _move(self) -> None:
        if self._waiting:
            device = self._waiting[-1].device
            self._there.append(torch.cat([values.to(device) for values in self._waiting]).to("cpu", torch.float32))
            self._waiting, self._numbers = [], 0
