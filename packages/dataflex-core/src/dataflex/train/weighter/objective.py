"""The objective of a weighted run.

A step has R rows with a label to predict, over all its micro-batches and ranks; row i has m_i labels, N = sum m_i,
token losses c_it and loss l_i = mean_t c_it. A weighter returns a scalar s(l) for each micro-batch; w_i = (ds/dl_i) /
(d mean/dl_i), so that the plain mean weighs every row 1. The step minimises

    L = 1/R sum_i w_i / m_i sum_t c_it  =  1/N sum_i a_i sum_t c_it,   a_i = w_i N / (m_i R)

which is the mean of the weighted sample losses, however the rows are split. Or, where a run asks for the mean over
tokens, a_i = w_i: long rows then count more, as they do in the plain loss. Where every a_i is exactly 1 (w = 1, and
rows of equal length or a mean over tokens) the plain loss is computed, operation for operation.

m_i counts labels as the plain loss counts them for its own mean: where the loop counts the labels of the step, the
first token of a row is included although it is never predicted; l_i, which the weighter sees, is the mean over
predicted tokens. c_it is cross entropy, or the run's other :mod:`token loss <dataflex.train.weighter.token_losses>`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dataflex.train.weighter.token_losses import CROSS_ENTROPY, IGNORED, CrossEntropy, TokenLoss

Weigh = Callable[[torch.Tensor], torch.Tensor]
"""The weighter: (B,) losses -> a scalar that depends on them."""

Watch = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Told the (B,) weights, the (B,) factors that the rows' losses l_i have in the loss of the step, and which (B,) rows
have a label to predict."""


@dataclass(frozen=True)
class Objective:
    """What the micro-batch is part of.

    Attributes:
        tokens: N, labels of the whole step; None where the loop averages over micro-batches instead.
        rows: R, rows with labels of the whole step.
        by_tokens: Whether the step's loss is a mean over tokens and not over samples.
    """

    tokens: torch.Tensor | int | None
    rows: int
    by_tokens: bool = False


def labelled_rows(labels_BT: torch.Tensor) -> int:
    """Returns how many rows of the batch have a label to predict; the first token of a row is never predicted."""
    return int((labels_BT[:, 1:] != IGNORED).any(dim=1).sum())


def labelled_tokens(labels_BT: torch.Tensor) -> torch.Tensor:
    """Returns how many labels of the batch are predicted, a scalar."""
    return (labels_BT[:, 1:] != IGNORED).sum()


def weighted_loss(
    logits_BTV: torch.Tensor,
    labels_BT: torch.Tensor,
    objective: Objective,
    weigh: Weigh,
    token_loss: TokenLoss = CROSS_ENTROPY,
    watch: Watch | None = None,
) -> torch.Tensor:
    """Returns this micro-batch's part of the step's loss, a scalar.

    Args:
        logits_BTV: Raw logits of any float type.
        labels_BT: Labels before the shift; -100 is ignored.
        objective: N and R of the step.
        weigh: The weighter.
        token_loss: What a token costs.
        watch: Told the weights.
    """
    B, T, V = logits_BTV.shape
    labels_BT = labels_BT.to(logits_BTV.device)
    targets_M = _targets(labels_BT).view(-1)
    # The two halves of cross_entropy, apart, so that the token losses cost no second pass over the vocabulary.
    logp = F.log_softmax(logits_BTV.float().view(B * T, V), dim=-1)
    c_M = token_loss.each(logp, targets_M)
    first = token_loss.counts_first
    return _joined(
        c_M.view(B, T), labels_BT, objective, weigh, first, lambda: token_loss.total(logp, targets_M, c_M), watch
    )


def weighted_loss_of_tokens(
    c_BT: torch.Tensor,
    labels_BT: torch.Tensor,
    objective: Objective,
    weigh: Weigh,
    token_loss: CrossEntropy = CROSS_ENTROPY,
    watch: Watch | None = None,
) -> torch.Tensor:
    """Returns what :func:`weighted_loss` does, from the cross entropies of the tokens and not their logits.

    Args:
        c_BT: (B, T) fp32 cross entropies, at the position before each label; 0 where there is none.
        labels_BT: Labels before the shift; -100 is ignored.
        objective: N and R of the step.
        weigh: The weighter.
        token_loss: What a token costs.
        watch: Told the weights.
    """
    c_BT = token_loss.from_cross_entropy(c_BT)
    labels_BT = labels_BT.to(c_BT.device)
    return _joined(c_BT, labels_BT, objective, weigh, token_loss.counts_first, c_BT.sum, watch)


def _joined(
    c_BT: torch.Tensor,
    labels_BT: torch.Tensor,
    objective: Objective,
    weigh: Weigh,
    counts_first: bool,
    plain_total: Callable[[], torch.Tensor],
    watch: Watch | None,
) -> torch.Tensor:
    """Returns 1/N sum_i a_i sum_t c_it, where every a_i is 1 by the plain loss's own sum."""
    targets_BT = _targets(labels_BT)
    w_B, scalar = _weights(c_BT.detach(), targets_BT, weigh)
    n_B = (targets_BT != IGNORED).sum(dim=1)
    rows = labelled_rows(labels_BT) if objective.tokens is None else objective.rows
    if objective.tokens is not None and counts_first:
        m_B, tokens = (labels_BT != IGNORED).sum(dim=1), objective.tokens
    else:  # any number does for N, as it cancels out; the plain loss divides by this one
        m_B = n_B
        tokens = m_B.sum().clamp(min=1)
    if objective.by_tokens:
        a_B = torch.where(n_B > 0, w_B, 1.0)
    else:
        a_B = torch.where(m_B > 0, w_B.double() * tokens / (m_B.clamp(min=1) * rows), 1.0).to(c_BT.dtype)
    if watch is not None:
        watch(w_B, a_B * n_B / tokens, n_B > 0)
    uniform = bool((a_B == 1).all())
    loss = (plain_total() if uniform else (a_B[:, None] * c_BT).sum()) / tokens
    # A term of the weighter's own that reaches the parameters other than through the losses counts as well; its value
    # is not added, so that the logged loss stays the weighted loss.
    return loss + (scalar - scalar.detach())


def _targets(labels_BT: torch.Tensor) -> torch.Tensor:
    """Returns what is predicted at each position: (B, T) the label of the next one."""
    return F.pad(labels_BT, (0, 1), value=IGNORED)[:, 1:].contiguous()


def _weights(c_BT: torch.Tensor, targets_BT: torch.Tensor, weigh: Weigh) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (B,) weights and the weighter's scalar."""
    n_B = (targets_BT != IGNORED).sum(dim=1)
    losses_B = (c_BT.sum(dim=1) / n_B.clamp(min=1)).requires_grad_()
    with torch.enable_grad(), torch.autocast(c_BT.device.type, enabled=False):
        scalar = weigh(losses_B)
        (gradient_B,) = torch.autograd.grad(scalar, losses_B, retain_graph=True, allow_unused=True)
    uniform = losses_B.new_tensor(1.0) / len(losses_B)  # d mean/dl_i, by the division that autograd makes
    weights_B = torch.zeros_like(losses_B) if gradient_B is None else gradient_B / uniform
    return torch.where(n_B > 0, weights_B, 0.0).detach(), scalar
