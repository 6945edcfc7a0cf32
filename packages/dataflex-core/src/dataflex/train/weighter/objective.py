"""The objective of a weighted run.

A step has R rows with a label to predict, over all its micro-batches and ranks; row i has m_i labels, N = sum m_i,
token losses c_it and loss l_i = mean_t c_it. A weighter returns a scalar s(l) for each micro-batch; w_i = (ds/dl_i) /
(d mean/dl_i), so that the plain mean weighs every row 1. The step minimises

    L = 1/R sum_i w_i / m_i sum_t c_it  =  1/N sum_i a_i sum_t c_it,   a_i = w_i N / (m_i R)

which is the mean of the weighted sample losses, however the rows are split. With rows of equal length and w = 1 every
a_i is exactly 1 and the plain loss is computed, operation for operation.

m_i counts labels as the plain loss counts them for its own mean: where the loop counts the labels of the step, the
first token of a row is included although it is never predicted; l_i, which the weighter sees, is the mean over
predicted tokens. c_it is cross entropy, or the run's other :mod:`token loss <dataflex.train.weighter.token_losses>`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dataflex.train.weighter.token_losses import CROSS_ENTROPY, IGNORED, TokenLoss


@dataclass(frozen=True)
class Objective:
    """What the micro-batch is part of.

    Attributes:
        tokens: N, labels of the whole step; None where the loop averages over micro-batches instead.
        rows: R, rows with labels of the whole step.
    """

    tokens: torch.Tensor | int | None
    rows: int


def labelled_rows(labels_BT: torch.Tensor) -> int:
    """Returns how many rows of the batch have a label to predict; the first token of a row is never predicted."""
    return int((labels_BT[:, 1:] != IGNORED).any(dim=1).sum())


def weighted_loss(
    logits_BTV: torch.Tensor,
    labels_BT: torch.Tensor,
    objective: Objective,
    weigh: Callable[[torch.Tensor], torch.Tensor],
    token_loss: TokenLoss = CROSS_ENTROPY,
    watch: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Returns this micro-batch's part of the step's loss, a scalar.

    Args:
        logits_BTV: Raw logits of any float type.
        labels_BT: Labels before the shift; -100 is ignored.
        objective: N and R of the step.
        weigh: The weighter: (B,) losses -> scalar that depends on them.
        token_loss: What a token costs.
        watch: Told the (B,) weights, the (B,) factors that the rows' losses l_i have in the loss of the step, and which
            (B,) rows have a label to predict.
    """
    B, T, V = logits_BTV.shape
    labels_BT = labels_BT.to(logits_BTV.device)
    targets_BT = F.pad(labels_BT, (0, 1), value=IGNORED)[:, 1:].contiguous()
    # The two halves of cross_entropy, apart, so that the token losses cost no second pass over the vocabulary.
    logp = F.log_softmax(logits_BTV.float().view(B * T, V), dim=-1)
    c_M = token_loss.each(logp, targets_BT.view(-1))
    c_BT = c_M.view(B, T)
    w_B, scalar = _weights(c_BT.detach(), targets_BT, weigh)
    rows = labelled_rows(labels_BT) if objective.tokens is None else objective.rows
    if objective.tokens is not None and token_loss.counts_first:
        m_B, tokens = (labels_BT != IGNORED).sum(dim=1), objective.tokens
    else:  # any number does for N, as it cancels out; the plain loss divides by this one
        m_B = (targets_BT != IGNORED).sum(dim=1)
        tokens = m_B.sum().clamp(min=1)
    a_B = torch.where(m_B > 0, w_B.double() * tokens / (m_B.clamp(min=1) * rows), 1.0).to(c_BT.dtype)
    if watch is not None:
        n_B = (targets_BT != IGNORED).sum(dim=1)
        watch(w_B, a_B * n_B / tokens, n_B > 0)
    uniform = bool((a_B == 1).all())
    total = token_loss.total(logp, targets_BT.view(-1), c_M) if uniform else (a_B[:, None] * c_BT).sum()
    loss = total / tokens
    # A term of the weighter's own that reaches the parameters other than through the losses counts as well; its value
    # is not added, so that the logged loss stays the weighted loss.
    return loss + (scalar - scalar.detach())


def _weights(
    c_BT: torch.Tensor, targets_BT: torch.Tensor, weigh: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (B,) weights and the weighter's scalar."""
    n_B = (targets_BT != IGNORED).sum(dim=1)
    losses_B = (c_BT.sum(dim=1) / n_B.clamp(min=1)).requires_grad_()
    with torch.enable_grad(), torch.autocast(c_BT.device.type, enabled=False):
        scalar = weigh(losses_B)
        (gradient_B,) = torch.autograd.grad(scalar, losses_B, retain_graph=True, allow_unused=True)
        (uniform_B,) = torch.autograd.grad(losses_B.mean(), losses_B)
    weights_B = torch.zeros_like(losses_B) if gradient_B is None else gradient_B / uniform_B
    return torch.where(n_B > 0, weights_B, 0.0).detach(), scalar
