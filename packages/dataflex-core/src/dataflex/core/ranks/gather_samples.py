"""The losses of one micro-batch over all ranks, or vectors of its samples, for weighters that compare samples.

Letters: B samples of a rank, D numbers of a vector, W places of a rank, R ranks, G = R W.
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


def gather_vectors(
    vectors_BD: torch.Tensor, counted_B: torch.Tensor, accelerator: Accelerator, width: int
) -> tuple[torch.Tensor, torch.Tensor, slice]:
    """Returns what :func:`gather_samples` does, of a vector for each sample: (G, D), (G,) bool and a slice.

    Args:
        vectors_BD: (B, D) float vectors of this rank.
        counted_B: (B,) bool, which of them count.
        accelerator: The run's accelerator.
        width: W, at least every rank's B and the same on each.
    """
    own = vectors_BD.detach()
    if accelerator.num_processes == 1:
        return own, counted_B, slice(0, len(own))
    with_counted = torch.cat([own, counted_B.to(own)[:, None]], dim=1)
    padded_WX = torch.nn.functional.pad(with_counted, (0, 0, 0, width - len(own)))
    gathered_GX = torch.as_tensor(accelerator.gather(padded_WX))
    start = accelerator.process_index * width
    return gathered_GX[:, :-1], gathered_GX[:, -1] > 0, slice(start, start + len(own))
