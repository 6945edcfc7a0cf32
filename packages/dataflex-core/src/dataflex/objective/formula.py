"""The objective of a weighted run.

A step has R samples with a label to predict, over all its micro-batches and ranks; sample i has m_i labels, N = sum
m_i, token losses c_it and loss l_i = mean_t c_it. A weighter returns a scalar s(l) for each micro-batch; w_i =
(ds/dl_i) / (d mean/dl_i), so that the plain mean weighs every sample 1. The step minimises

    L = 1/R sum_i w_i / m_i sum_t c_it  =  1/N sum_i a_i sum_t c_it,   a_i = w_i N / (m_i R)

which is the mean of the weighted sample losses, however the samples are split. Or, where a run asks for the mean over
tokens, a_i = w_i: long samples then count more, as they do in the plain loss. Where every a_i is exactly 1 (w = 1, and
samples of equal length or a mean over tokens) the loss and its gradient are the plain ones, bit for bit. A sample is a
row, or a document of a packed row (:mod:`dataflex.objective.samples`).

N and R are those of the whole step. A micro-batch gives its terms of the sum; what the training loop does to them
afterwards is undone (:mod:`dataflex.objective.loop_scale`).

m_i counts labels as the plain loss counts them for its own mean: where the loop counts the labels of the step, the
first token of a row is included although it is never predicted; l_i, which the weighter sees, is the mean over
predicted tokens. c_it is cross entropy, or the run's other :mod:`token loss <dataflex.objective.token_losses>`.

Letters: B rows of the micro-batch, T tokens, V vocabulary, S samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from dataflex.objective.samples import ROWS, Samples
from dataflex.objective.token_losses import CROSS_ENTROPY, CrossEntropy, TokenLoss
from dataflex.scoring.label_logits import IGNORED

Weigh = Callable[[torch.Tensor], torch.Tensor]
"""The weighter: (S,) losses -> a scalar that depends on them."""

Total = Callable[[], torch.Tensor]
"""The sum of a micro-batch's token losses, added up as the plain loss adds it up."""

Watch = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Told the (S,) weights, the (S,) factors that the samples' losses l_i have in the loss of the step, and which (S,)
samples have a label to predict."""


class StepCounts(NamedTuple):
    """Counts of a step, over all its micro-batches and ranks; integers, or scalar tensors on the device.

    Attributes:
        samples: R, samples with a label to predict.
        labels: Labels, the first token's of a row among them.
        predicted: Labels that are predicted.
    """

    samples: torch.Tensor | int
    labels: torch.Tensor | int
    predicted: torch.Tensor | int


@dataclass(frozen=True)
class Objective:
    """What the micro-batch is part of.

    Attributes:
        step: The counts of the step.
        counts_first: Whether the plain loss is divided by the labels with the first token's among them.
        by_tokens: Whether the step's loss is a mean over tokens and not over samples.
        scale: What the micro-batch's part is multiplied by, so that what the loop does to it is undone.
    """

    step: StepCounts
    counts_first: bool = True
    by_tokens: bool = False
    scale: float = 1.0


def counted(labels_BT: torch.Tensor, samples: Samples = ROWS) -> torch.Tensor:
    """Returns what a batch adds to :class:`StepCounts`: (3,) int64."""
    predicted_BT = predicted(labels_BT)
    samples_S = samples.loss_sums(predicted_BT) > 0
    return torch.stack([samples_S.sum(), (labels_BT != IGNORED).sum(), predicted_BT.sum()])


def predicted(labels_BT: torch.Tensor) -> torch.Tensor:
    """Returns (B, T) bool: which positions predict a label; the first token of a row is never predicted."""
    return _targets(labels_BT) != IGNORED


def weighted_loss(
    logits_BTV: torch.Tensor,
    labels_BT: torch.Tensor,
    objective: Objective,
    weigh: Weigh,
    token_loss: TokenLoss = CROSS_ENTROPY,
    watch: Watch | None = None,
    samples: Samples = ROWS,
) -> torch.Tensor:
    """Returns this micro-batch's part of the step's loss, a scalar.

    Args:
        logits_BTV: Raw logits of any float type.
        labels_BT: Labels before the shift; -100 is ignored.
        objective: The step.
        weigh: The weighter.
        token_loss: What a token costs.
        watch: Told the weights.
        samples: What the samples are.
    """
    labels_BT = labels_BT.to(logits_BTV.device)
    c_BT, total = losses_of_tokens(logits_BTV, labels_BT, token_loss)
    batch = _MicroBatch(c_BT, labels_BT, samples, token_loss.counts_first)
    return _joined(batch, objective, weigh, total, watch)


def weighted_loss_of_tokens(
    c_BT: torch.Tensor,
    labels_BT: torch.Tensor,
    objective: Objective,
    weigh: Weigh,
    token_loss: CrossEntropy = CROSS_ENTROPY,
    watch: Watch | None = None,
    samples: Samples = ROWS,
    plain_total: Total | None = None,
) -> torch.Tensor:
    """Returns what :func:`weighted_loss` does, from the cross entropies of the tokens and not their logits.

    Args:
        c_BT: (B, T) fp32 cross entropies, at the position before each label; 0 where there is none.
        labels_BT: Labels before the shift; -100 is ignored.
        objective: The step.
        weigh: The weighter.
        token_loss: What a token costs.
        watch: Told the weights.
        samples: What the samples are.
        plain_total: The sum of the losses as the plain loss adds them up, where that is another order than here.
    """
    c_BT = token_loss.from_cross_entropy(c_BT)
    batch = _MicroBatch(c_BT, labels_BT.to(c_BT.device), samples, token_loss.counts_first)
    return _joined(batch, objective, weigh, plain_total or c_BT.sum, watch)


def losses_of_tokens(
    logits_BTV: torch.Tensor, labels_BT: torch.Tensor, token_loss: TokenLoss
) -> tuple[torch.Tensor, Total]:
    """Returns (B, T) losses, at the position before each label and 0 where there is none, and what adds them up.

    Args:
        logits_BTV: Raw logits of any float type.
        labels_BT: Labels before the shift, on the same device.
        token_loss: What a token costs.
    """
    B, T, V = logits_BTV.shape
    targets_M = _targets(labels_BT).view(-1)
    # The two halves of cross_entropy, apart, so that the token losses cost no second pass over the vocabulary.
    logp = F.log_softmax(logits_BTV.float().view(B * T, V), dim=-1)
    c_M = token_loss.each(logp, targets_M)
    return c_M.view(B, T), lambda: token_loss.total(logp, targets_M, c_M)


@dataclass(frozen=True)
class _MicroBatch:
    losses: torch.Tensor  # (B, T) c_it
    labels: torch.Tensor  # (B, T)
    samples: Samples
    counts_first: bool

    def predicted(self) -> torch.Tensor:
        """Returns n: (S,) labels that are predicted."""
        return self.samples.loss_sums(predicted(self.labels))

    def labelled(self) -> torch.Tensor:
        """Returns (S,) labels, that of a row's first token among them."""
        return self.samples.label_sums(self.labels != IGNORED)


def _joined(
    batch: _MicroBatch, objective: Objective, weigh: Weigh, plain_total: Total, watch: Watch | None
) -> torch.Tensor:
    """Returns 1/N sum_i a_i sum_t c_it, where every a_i is 1 by the plain loss's own sum."""
    n_S = batch.predicted()
    w_S, scalar = _weights(batch.samples.loss_sums(batch.losses.detach()), n_S, weigh)
    first = objective.counts_first and batch.counts_first
    m_S, N = (batch.labelled(), objective.step.labels) if first else (n_S, objective.step.predicted)
    N = torch.as_tensor(N, device=n_S.device).clamp(min=1)
    R = torch.as_tensor(objective.step.samples, device=n_S.device).clamp(min=1)
    if objective.by_tokens:
        a_S = torch.where(n_S > 0, w_S, 1.0)
        part = m_S.sum() / N
    else:  # a quotient of integers is exactly 1 where they are equal
        a_S = torch.where(m_S > 0, w_S * (N / (m_S.clamp(min=1) * R)), 1.0).to(batch.losses.dtype)
        part = (n_S > 0).sum() / R
    if watch is not None:
        watch(w_S, a_S * n_S / N, n_S > 0)
    total = (batch.samples.at_losses(a_S) * batch.losses).sum()
    loss = _of_value(total, plain_total, (a_S == 1).all()) / N
    # A term of the weighter's own that reaches the parameters other than through the losses counts as well, by the
    # micro-batch's part of the step; its value is not added, so that the logged loss stays the weighted loss.
    return (loss + part * (scalar - scalar.detach())) * objective.scale


def _of_value(total: torch.Tensor, plain_total: Total, uniform: torch.Tensor) -> torch.Tensor:
    """Returns the weighted total; where every a_i is 1, with the value of the plain one, to the last bit.

    Its gradient is that of the plain one then: a factor of 1 changes no bit. Which of the two values it is is decided
    on the device, as the host must not wait for it in the middle of a step. Two numbers that are nearly equal have an
    exact difference, so adding it gives exactly the other one.
    """
    with torch.no_grad():
        difference = torch.where(uniform, plain_total() - total, 0.0)
        difference = torch.where(difference.isfinite(), difference, 0.0)  # of totals that are not
    return total + difference


def _targets(labels_BT: torch.Tensor) -> torch.Tensor:
    """Returns what is predicted at each position: (B, T) the label of the next one."""
    return F.pad(labels_BT, (0, 1), value=IGNORED)[:, 1:].contiguous()


def _weights(sums_S: torch.Tensor, n_S: torch.Tensor, weigh: Weigh) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (S,) weights and the weighter's scalar, from the (S,) sums of token losses and numbers of tokens."""
    losses_S = (sums_S / n_S.clamp(min=1)).requires_grad_()
    with torch.enable_grad(), torch.autocast(losses_S.device.type, enabled=False):
        scalar = weigh(losses_S)
        (gradient_S,) = torch.autograd.grad(scalar, losses_S, retain_graph=True, allow_unused=True)
    uniform = losses_S.new_ones(()) / len(losses_S)  # d mean/dl_i, by the division that autograd makes
    weights_S = torch.zeros_like(losses_S) if gradient_S is None else gradient_S / uniform
    return torch.where(n_S > 0, weights_S, 0.0).detach(), scalar
