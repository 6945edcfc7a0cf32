"""Token losses straight from hidden states, without the logits of all tokens.

At a vocabulary of 150,000 the fp32 logits of 8,000 tokens take 4.8 GB, more than many a model. Here the output layer is
applied to a chunk of tokens at a time, and the chunk's logits are gone before the next one's are made; the backward
pass makes them again, a chunk of the vocabulary at a time: the gradient of a row of the weight is then one product over
all tokens and complete when its chunk is done, so no sum of (V, H) in float32 is kept beside it. Where the output layer
is frozen, as under LoRA, the gradient by the hidden states is made in the forward pass, up to each token's factor, and
nothing is computed twice.

Cost: with a trainable output layer one matrix product more than the plain way has (4 in the place of 3). Memory beside
the results: one chunk of logits, of which up to three copies exist for a moment; for a half-precision model (M, H) in
float32. Rejected: a fused kernel, which gives the sum over tokens and no token's own loss, and needs a GPU.

Letters: M tokens, H width of the model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F  # the field's name for it
from torch.autograd.function import once_differentiable

CPU_CHUNK = 2**22
"""Logits that a CPU makes at a time: 16 MB in fp32. Fewer would read the weights too often for their products."""

GPU_CHUNK = 2**26
"""Logits that a GPU makes at a time: 256 MB in fp32, 440 tokens at a vocabulary of 150k."""

LARGE_VOCABULARY = 2**16
"""From here on the logits of a batch are most of its memory."""


def linear_cross_entropy(
    hidden_MH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_M: torch.Tensor,
    chunk: int | None = None,
) -> torch.Tensor:
    """Returns -log softmax(W h + b)[target] of each token: (M,) float32, differentiable once by the first three.

    Under autocast the product is made in its type, as that of a linear layer; the softmax is in float32 always.

    Args:
        hidden_MH: (M, H) hidden states.
        weight_VH: (V, H) weight of the output layer.
        bias_V: (V,) its bias, or None.
        targets_M: (M,) token ids, each in [0, V).
        chunk: Tokens at a time; None for a number that suits the device. The backward pass takes as many logits at a
            time as that makes.
    """
    kind = hidden_MH.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        hidden_MH, weight_VH = hidden_MH.to(dtype), weight_VH.to(dtype)
        bias_V = None if bias_V is None else bias_V.to(dtype)
    rows = chunk or max(1, (CPU_CHUNK if kind == "cpu" else GPU_CHUNK) // len(weight_VH))
    with torch.autocast(kind, enabled=False):
        losses_M: torch.Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden_MH, weight_VH, bias_V, targets_M, rows
        )
    return losses_M


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_M: torch.Tensor,
        rows: int,
    ) -> torch.Tensor:
        by_hidden, by_weight, by_bias = ctx.needs_input_grad[:3]
        frozen = by_hidden and not (by_weight or by_bias)
        losses_M = torch.empty(len(targets_M), dtype=torch.float32, device=hidden_MH.device)
        lse_M = torch.empty_like(losses_M)
        unit_MH = torch.empty_like(hidden_MH) if frozen else None  # d loss_m / d h_m
        for part in _parts(len(targets_M), rows):
            logits = F.linear(hidden_MH[part], weight_VH, bias_V).float()
            chosen = logits.gather(1, targets_M[part, None])[:, 0]
            top = logits.amax(dim=1)
            sums = logits.sub_(top[:, None]).exp_().sum(dim=1)  # in place: one chunk of logits, not two
            lse_M[part] = top + sums.log()
            losses_M[part] = lse_M[part] - chosen
            if unit_MH is not None:
                slopes = _minus_one_at(logits.div_(sums[:, None]), targets_M[part]).to(weight_VH.dtype)
                unit_MH[part] = slopes @ weight_VH
        ctx.rows, ctx.frozen = rows, frozen
        if frozen:
            ctx.save_for_backward(unit_MH)
        else:
            ctx.save_for_backward(hidden_MH, weight_VH, bias_V, targets_M, lse_M)
        return losses_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (factors_M,) = upstream
        if ctx.frozen:
            (unit_MH,) = ctx.saved_tensors
            return unit_MH * factors_M[:, None].to(unit_MH.dtype), None, None, None, None
        hidden_MH, weight_VH, bias_V, targets_M, lse_M = ctx.saved_tensors
        by_hidden, by_weight, by_bias = ctx.needs_input_grad[:3]
        # Sums over the vocabulary: in fp32, as a sum of many parts in bf16 loses what is small beside it.
        d_hidden = torch.zeros_like(hidden_MH, dtype=torch.float32) if by_hidden else None
        d_weight = torch.zeros_like(weight_VH) if by_weight else None
        d_bias = torch.zeros_like(bias_V) if by_bias else None
        tokens, words = len(hidden_MH), len(weight_VH)
        for part in _parts(words, max(1, ctx.rows * words // max(1, tokens)) if tokens else words):
            bias = None if bias_V is None else bias_V[part]
            logits = F.linear(hidden_MH, weight_VH[part], bias).float()
            slopes = _minus_one_inside(logits.sub_(lse_M[:, None]).exp_(), targets_M - part.start)
            slopes.mul_(factors_M[:, None])
            if d_bias is not None:
                d_bias[part] = slopes.sum(dim=0)
            slopes = slopes.to(weight_VH.dtype)
            if d_hidden is not None:
                d_hidden = _plus_product(d_hidden, slopes, weight_VH[part])
            if d_weight is not None:
                torch.mm(slopes.t(), hidden_MH, out=d_weight[part])
        return None if d_hidden is None else d_hidden.to(hidden_MH.dtype), d_weight, d_bias, None, None


def _plus_product(sum_MH: torch.Tensor, slopes_MC: torch.Tensor, weight_CH: torch.Tensor) -> torch.Tensor:
    """Returns the fp32 sum with slopes weight added to it, in place."""
    if slopes_MC.dtype == sum_MH.dtype:
        return sum_MH.addmm_(slopes_MC, weight_CH)
    return sum_MH.add_(slopes_MC @ weight_CH)


def _minus_one_inside(p_MC: torch.Tensor, places_M: torch.Tensor) -> torch.Tensor:
    """Returns p with 1 taken from the entry of each target that is among these words, in place."""
    inside_M = (places_M >= 0) & (places_M < p_MC.shape[1])
    places_M = places_M.clamp(0, p_MC.shape[1] - 1)
    return p_MC.scatter_add_(1, places_M[:, None], -inside_M.to(p_MC.dtype)[:, None])


def _minus_one_at(p_CV: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
    """Returns p with 1 taken from each target's entry, in place: the slope of the loss by the logits."""
    return p_CV.scatter_add_(1, targets_C[:, None], p_CV.new_full((len(p_CV), 1), -1.0))


def _parts(whole: int, size: int) -> Iterator[slice]:
    for start in range(0, whole, size):
        yield slice(start, start + size)
