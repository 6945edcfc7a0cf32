"""Mixed precision as training has it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator


def autocast(accelerator: Accelerator | None) -> AbstractContextManager[None]:
    """Returns the context in which a forward runs under the run's mixed precision; none without an accelerator."""
    return nullcontext() if accelerator is None else accelerator.autocast()


def in_float32(tensor: torch.Tensor) -> AbstractContextManager[None]:
    """Returns the context in which products of float32 tensors are made in float32, whatever runs around it."""
    return torch.autocast(tensor.device.type, enabled=False)


def allowed_rounding(model: torch.nn.Module) -> float:
    """Returns how far numbers may lie apart, as a share, that were computed for another number of rows.

    Kernels round otherwise then. In 16 bits rounding is up to 2**-8 of a number, and a token may change its expert.
    """
    parameters = list(model.parameters())
    if torch.is_autocast_enabled(parameters[0].device.type):
        return 5e-2
    kinds = {parameter.dtype for parameter in parameters}
    if kinds == {torch.float64}:
        return 1e-8
    return 1e-4 if kinds <= {torch.float32, torch.float64} else 5e-2
