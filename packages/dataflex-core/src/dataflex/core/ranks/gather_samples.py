"""The losses of one micro-batch over all ranks, for weighters that compare samples with each other.

Letters: B samples of a rank, W places of a rank, R ranks, G = R W.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator


def gather_losses(losses: torch.Tensor, accelerator: Accelerator) -> tuple[torch.Tensor, slice]:
    """Returns the losses of every rank, and where this rank's own stand among them.

    Every rank must call it; each gets the same losses in the same order, that of the ranks. The ranks may hold
    different numbers of losses, none included: the counts are gathered first, then all are padded to the largest one
    (collectives want equal shapes and hang or fail without). Nothing is sent on a single rank.

    Args:
        losses: (B,) losses of this rank; B may differ between ranks, the dtype may not.
        accelerator: The run's accelerator.

    Returns:
        (G,) detached losses, G the sum of every rank's B, and the slice of them that is this rank's (B,).
    """
    own = losses.detach()
    if accelerator.num_processes == 1:
        return own, slice(0, own.numel())
    counts = accelerator.gather(torch.tensor([own.numel()], device=own.device)).tolist()
    width = max(counts)
    if width == 0:
        return own, slice(0, 0)
    padded = torch.nn.functional.pad(own, (0, width - own.numel()))
    gathered = accelerator.gather(padded).view(len(counts), width)
    start = sum(counts[: accelerator.process_index])
    everyone = torch.cat([row[:count] for row, count in zip(gathered, counts, strict=True)])
    return everyone, slice(start, start + own.numel())


def gather_samples(
    values_B: torch.Tensor, counted_B: torch.Tensor, accelerator: Accelerator, width: int
) -> tuple[torch.Tensor, torch.Tensor, slice]:
    """Returns the values of every rank's samples, which of them count, and where this rank's own stand.

    As :func:`gather_losses`, in one collective and without a wait of the host: each rank has ``width`` places, and
    those that it does not fill do not count. Nothing is sent on a single rank, and nothing is padded.

    Args:
        values_B: (B,) float values of this rank.
        counted_B: (B,) bool, which of them count.
        accelerator: The run's accelerator.
        width: W, at least every rank's B and the same on each.

    Returns:
        (G,) values, (G,) bool, and the slice of them that is this rank's (B,).
    """
    own = values_B.detach()
    if accelerator.num_processes == 1:
        return own, counted_B, slice(0, own.numel())
    padded_2W = torch.nn.functional.pad(torch.stack([own, counted_B.to(own)]), (0, width - own.numel()))
    gathered_R2W = accelerator.gather(padded_2W).view(-1, 2, width)
    start = accelerator.process_index * width
    return gathered_R2W[:, 0].flatten(), gathered_R2W[:, 1].flatten() > 0, slice(start, start + own.numel())
