"""Token losses straight from hidden states, without the logits of all tokens.

At a vocabulary of 150,000 the fp32 logits of 8,000 tokens take 4.8 GB, more than many a model. Here the output layer is
applied to all tokens and a chunk of the vocabulary at a time, and the chunk's logits are gone before the next one's are
made; each token's largest logit so far scales its sum of exponentials, as in flash attention. A chunk of the vocabulary
rather than of the tokens: the weight, 113 MB for 49,000 words of 576 numbers, is read once and not once per chunk. The
backward pass makes the logits again: the gradient of a row of the weight is then one product over all tokens and
complete when its chunk is done, so no sum of (V, H) in float32 is kept beside it. Where the output layer is frozen, as
under LoRA, the gradient by the hidden states is made in the forward pass, up to each token's factor, and nothing is
computed twice.

Cost: with a trainable output layer one matrix product more than the plain way has (4 in the place of 3). Memory beside
the results: one chunk of logits, of which up to three copies exist for a moment; (M, H) in float32. Rejected: a fused
kernel, which gives the sum over tokens and no token's own loss, and needs a GPU.

Letters: M tokens, H width of the model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F  # the field's name for it
from torch.autograd.function import once_differentiable

CPU_CHUNK = 2**22
"""Logits that a CPU makes at a time: 16 MB in fp32. Fresh memory for those of a batch takes time."""

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
        chunk: Words of the vocabulary at a time; None for a number that suits the device.
    """
    kind = hidden_MH.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        hidden_MH, weight_VH = hidden_MH.to(dtype), weight_VH.to(dtype)
        bias_V = None if bias_V is None else bias_V.to(dtype)
    words = chunk or max(_LEAST_WORDS, (CPU_CHUNK if kind == "cpu" else GPU_CHUNK) // max(1, len(hidden_MH)))
    with torch.autocast(kind, enabled=False):
        losses_M: torch.Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden_MH, weight_VH, bias_V, targets_M, words
        )
    return losses_M


_LEAST_WORDS = 256
"""Words at a time at least, however many tokens there are: a product of fewer columns is slow."""


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_M: torch.Tensor,
        words: int,
    ) -> torch.Tensor:
        by_hidden, by_weight, by_bias = ctx.needs_input_grad[:3]
        frozen = by_hidden and not (by_weight or by_bias)
        tokens = len(targets_M)
        device = hidden_MH.device
        # Of each token, so far: the largest logit, the sum of exp(logit - largest), the target's logit.
        top_M = torch.full((tokens,), torch.finfo(torch.float32).min, dtype=torch.float32, device=device)
        sums_M, chosen_M = torch.zeros_like(top_M), torch.zeros_like(top_M)
        # With the words' weights summed alike: sum of exp(logit - largest) w, in fp32 as bf16 loses what is small.
        unit_MH = torch.zeros_like(hidden_MH, dtype=torch.float32) if frozen else None
        for part in _parts(len(weight_VH), words):
            logits_MC = F.linear(hidden_MH, weight_VH[part], None if bias_V is None else bias_V[part]).float()
            inside_M, places_M = _places(targets_M - part.start, logits_MC.shape[1])
            chosen_M += logits_MC.gather(1, places_M[:, None])[:, 0].masked_fill_(~inside_M, 0.0)
            former_M, top_M = top_M, torch.maximum(top_M, logits_MC.amax(dim=1))
            shrunk_M = (former_M - top_M).exp_()
            logits_MC.sub_(top_M[:, None]).exp_()  # in place: one chunk of logits, not two
            sums_M.mul_(shrunk_M).add_(logits_MC.sum(dim=1))
            if unit_MH is not None:
                unit_MH = _plus_product(unit_MH.mul_(shrunk_M[:, None]), logits_MC.to(weight_VH.dtype), weight_VH[part])
        lse_M = top_M + sums_M.log()
        losses_M: torch.Tensor = lse_M - chosen_M
        if unit_MH is not None:  # d loss_m / d h_m = sum over words of p w, less the target's w
            unit_MH.div_(sums_M[:, None]).sub_(weight_VH.index_select(0, targets_M))
        ctx.words, ctx.frozen = words, frozen
        if frozen:
            ctx.dtype = hidden_MH.dtype
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
            return (unit_MH * factors_M[:, None]).to(ctx.dtype), None, None, None, None
        hidden_MH, weight_VH, bias_V, targets_M, lse_M = ctx.saved_tensors
        by_hidden, by_weight, by_bias = ctx.needs_input_grad[:3]
        # Sums over the vocabulary: in fp32, as a sum of many parts in bf16 loses what is small beside it.
        d_hidden = torch.zeros_like(hidden_MH, dtype=torch.float32) if by_hidden else None
        d_weight = torch.zeros_like(weight_VH) if by_weight else None
        d_bias = torch.zeros_like(bias_V) if by_bias else None
        for part in _parts(len(weight_VH), ctx.words):
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


def _places(targets_M: torch.Tensor, words: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns which targets are among the ``words`` of a chunk, and their places in it; of the others any place."""
    return (targets_M >= 0) & (targets_M < words), targets_M.clamp(0, words - 1)


def _minus_one_inside(p_MC: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
    """Returns p with 1 taken from the entry of each target that is among these words, in place."""
    inside_M, places_M = _places(targets_M, p_MC.shape[1])
    return p_MC.scatter_add_(1, places_M[:, None], -inside_M.to(p_MC.dtype)[:, None])


def _parts(whole: int, size: int) -> Iterator[slice]:
    for start in range(0, whole, size):
        yield slice(start, start + size)
