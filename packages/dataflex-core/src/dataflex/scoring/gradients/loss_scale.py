"""Losses scaled for the way back through a model that computes in fp16, as training has a scale for it.

fp16 ends at 6e-8: what is smaller on the way back is 0, and the gradients of a row's first layers may be nothing else.
Each row's loss is multiplied by a power of two, and its gradients are divided by it once they are in float32; neither
rounds. Rows have a scale each, as their losses are apart anyway: what one row comes to does not hang on the others. It
is set by the gradient at a token's loss, which is 1 / tokens for a mean. A row whose gradient overflows (65,504) comes
again with a smaller scale, down to 1, as it would be without any; then it is for those who use it to refuse it. Where
ranks share the weights none can go back alone: there scales are smaller from the start, and no row comes again.

Letters: B rows of the batch.
"""

from __future__ import annotations

import torch

TOKEN_SCALE = 2.0**8
"""The gradient at a token's loss: what is up to 256 times larger fits, and 4e9 times smaller."""

CAREFUL_SCALE = 2.0**4
"""The same where there is no second try."""

STEP = 2.0**6
"""What a scale is divided by where it was too large."""


def computes_in_fp16(model: torch.nn.Module) -> bool:
    """Returns whether activations of the model are in fp16, under the present autocast."""
    parameters = list(model.parameters())
    kind = parameters[0].device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
        return True
    return any(parameter.dtype == torch.float16 for parameter in parameters)


def row_scales(
    model: torch.nn.Module, counts_B: torch.Tensor, total: bool, *, again: bool = True
) -> torch.Tensor | None:
    """Returns what the loss of each row is multiplied with: (B,) powers of two; None where nothing needs it.

    Args:
        model: The model; called under the autocast of its forward.
        counts_B: (B,) label tokens of each row.
        total: Whether a row's loss is the sum of its token losses; otherwise it is their mean.
        again: Whether a row that overflows can come again.
    """
    if not computes_in_fp16(model):
        return None
    scales_B = torch.full(counts_B.shape, TOKEN_SCALE if again else CAREFUL_SCALE)
    return scales_B if total else scales_B * torch.exp2(counts_B.clamp(min=1).float().log2().floor())


def lowered(scales_B: torch.Tensor | None, squares_B: torch.Tensor) -> torch.Tensor | None:
    """Returns the scales for another try, or None where none is needed or none would help.

    Args:
        scales_B: (B,) the scales of the last try.
        squares_B: (B,) squared norms of what it gave.
    """
    if scales_B is None:
        return None
    again_B = ~squares_B.isfinite().to(scales_B.device) & (scales_B > 1)
    return torch.where(again_B, (scales_B / STEP).clamp(min=1), scales_B) if again_B.any() else None
