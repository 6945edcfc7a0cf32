"""The loss of tokens and of samples, as pure functions on tensors.

Letters: B rows of the batch, T tokens, V vocabulary, M label positions of the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # the field's name for it

CPU_CHUNK = 2**20
"""Logits that a CPU turns into fp32 log-probabilities at a time: 4 MB, which a cache holds."""

GPU_CHUNK = 2**26
"""Logits that a GPU does at a time: 256 MB, few enough kernels for a vocabulary of 150k."""


def token_losses(logits_MV: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
    """Returns -log p(target) at each position: (M,) float32.

    Works in chunks, so that the float32 copy and the log-probabilities of all M positions never exist at once.

    Args:
        logits_MV: (M, V) logits of any floating type.
        targets_M: (M,) token ids.
    """
    losses_M = torch.empty(len(targets_M), dtype=torch.float32, device=logits_MV.device)
    rows = max(1, (CPU_CHUNK if logits_MV.device.type == "cpu" else GPU_CHUNK) // logits_MV.shape[-1])
    for start in range(0, len(targets_M), rows):
        part = slice(start, start + rows)
        losses_M[part] = F.cross_entropy(logits_MV[part].float(), targets_M[part], reduction="none")
    return losses_M


def sample_means(losses_M: torch.Tensor, positions_M: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Returns the mean token loss of each row: (B,) float32, NaN for a row without a label position.

    The sum is taken over a padded (B, T), not by atomic additions, so a GPU repeats it to the last bit.

    Args:
        losses_M: (M,) token losses.
        positions_M: (M,) their positions in the flattened (B, T), each once.
        shape: (B, T).
    """
    counts_BT = losses_M.new_zeros(shape.numel()).index_fill_(0, positions_M, 1).view(shape)
    return at_positions(losses_M, positions_M, shape).sum(dim=1) / counts_BT.sum(dim=1)


def at_positions(losses_M: torch.Tensor, positions_M: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Returns the token losses where they belong: (B, T) float32, 0 elsewhere.

    Args:
        losses_M: (M,) token losses.
        positions_M: (M,) their positions in the flattened (B, T), each once.
        shape: (B, T).
    """
    return losses_M.new_zeros(shape.numel()).index_copy_(0, positions_M, losses_M).view(shape)


@torch.no_grad()
def token_loss_gradients(logits_MV: torch.Tensor, targets_M: torch.Tensor, weights_M: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of ``sum_m weights_m * loss_m`` at the logits: (M, V) in their type.

    Works in chunks like :func:`token_losses`; going through autograd instead would keep all log-probabilities.

    Args:
        logits_MV: (M, V) logits of any floating type.
        targets_M: (M,) token ids.
        weights_M: (M,) weights.
    """
    gradients_MV = torch.empty_like(logits_MV)
    rows = max(1, (CPU_CHUNK if logits_MV.device.type == "cpu" else GPU_CHUNK) // logits_MV.shape[-1])
    for start in range(0, len(targets_M), rows):
        part = slice(start, start + rows)
        chunk = logits_MV[part].float().softmax(dim=-1)
        chunk[torch.arange(len(chunk), device=chunk.device), targets_M[part]] -= 1
        gradients_MV[part] = chunk.mul_(weights_M[part].unsqueeze(1))
    return gradients_MV
