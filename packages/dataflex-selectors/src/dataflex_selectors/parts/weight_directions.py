"""Random directions in the space of the trainable weights, and steps along one and back.

A direction is drawn from its own seed, one parameter at a time, on the CPU: every rank and every device has the same
one, and none is stored. Rejected: drawing on the GPU, whose generator differs from one kind of device to another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from dataflex.core.component import seeded
from dataflex.core.errors import ComponentError

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Directions:
    """Directions xi_p ~ N(0, I_d), d being the number of trainable weights of a model.

    Attributes:
        parameters: Name -> trainable parameter.
        seed: What the directions depend on, the same on every rank.
    """

    parameters: dict[str, torch.nn.Parameter]
    seed: int

    @classmethod
    def of(cls, model: torch.nn.Module, seed: int) -> Directions:
        """Returns the directions of ``model``.

        Raises:
            ComponentError: Nothing is trained.
        """
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not parameters:
            raise ComponentError("no parameter of the model requires a gradient, so there is no direction to move in")
        return cls(parameters, seed)

    def vector(self, direction: int) -> Iterator[torch.Tensor]:
        """Yields the part of xi that belongs to each parameter: float32, in its shape and on its device."""
        for place, parameter in enumerate(self.parameters.values()):
            source = torch.Generator().manual_seed(seeded(self.seed, direction, place))
            yield torch.randn(parameter.shape, generator=source, dtype=torch.float32).to(parameter.device)

    def rms(self) -> float:
        """Returns the root mean square of all trainable weights together."""
        norms = [torch.linalg.vector_norm(p.detach(), dtype=torch.float32) for p in self.parameters.values()]
        squares = sum(norm**2 for norm in torch.stack([norm.to(norms[0].device) for norm in norms]).tolist())
        return float(np.sqrt(squares / sum(p.numel() for p in self.parameters.values())))


def is_narrow(model: torch.nn.Module, accelerator: Accelerator | None) -> bool:
    """Returns whether some of the model's computation runs in fewer than 32 bits."""
    mixed = accelerator is not None and accelerator.mixed_precision != "no"
    return mixed or any(p.dtype not in (torch.float32, torch.float64) for p in model.parameters())


@contextmanager
def moved(drawn: Directions, direction: int, distance: float) -> Iterator[None]:
    """Adds ``distance`` times a direction to the trainable weights for the block.

    Afterwards, also when the block raises, every weight has the bits that it had: they come from a copy, because adding
    and subtracting would leave rounding errors. The copy takes as much memory as the trainable weights.
    """
    saved = [parameter.detach().clone() for parameter in drawn.parameters.values()]
    try:
        # Twice, and not around the whole: torch hands an exception of the block on in a way that Python 3.12 warns of.
        with torch.no_grad():
            for parameter, before, xi in zip(drawn.parameters.values(), saved, drawn.vector(direction), strict=True):
                wide = torch.promote_types(before.dtype, torch.float32)
                parameter.copy_(torch.add(before.to(wide), xi, alpha=distance))
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(drawn.parameters.values(), saved, strict=True):
                parameter.copy_(before)
