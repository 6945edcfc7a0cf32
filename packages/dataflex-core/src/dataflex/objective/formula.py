"""The loss of an optimizer step, for any combination of what weighs it.

A step has samples i (rows, or documents of packed rows: :mod:`dataflex.objective.samples`), over all its micro-batches
and ranks; sample i has m_i labels and token losses c_it. It minimises

    L = sum_i b_i v_i u_i w_i sum_t z_it c_it  /  (Z sum_i b_i v_i m_i)

* v_i, the weight of the row's source: of a mixer that weighs. It stands below as well, so only ratios matter, and
  doubling it doubles the share of the source in the gradient.
* u_i, the weight of the row: of a selector that gives its rows weights, and of its source where
  ``objective_proportions`` give the sources other shares in the loss than they have in the rows: w_k / q_k of
  :attr:`dataflex.planning.mixture.MixtureManager.objective_weights`.
* w_i, the weight of the sample: of a weighter. It returns a scalar s(l) of the mean token losses l_i of a micro-batch;
  w_i = (ds/dl_i) / (d mean/dl_i), so that the plain mean weighs every sample 1.
* z_it, the weight of the token: of a weighter of tokens. Z is its mean over the predicted tokens of the step where the
  weighter says so, and 1 where it does not. With Z, L is the sum of z c over the sum of z.
* b_i = 1 / m_i with a weighter, which makes L a mean over samples; 1 without one, during its warm-up and with
  ``weight_objective: token``, which makes it a mean over tokens. Long samples then count more, as in the plain loss.
  With a weighter of tokens it is always 1.

What a run does not have is 1. u and w stand above alone: weights of 0.5 throughout halve the gradient, and so do z of
0.5 where Z is 1. Where all factors of the step are exactly 1 (and samples are of equal length or the mean is over
tokens) loss and gradient are the plain ones, bit for bit.

The sums are those of the whole step. A micro-batch gives its terms; what the training loop does to them afterwards is
undone (:mod:`dataflex.objective.loop_scale`). m_i counts labels as the plain loss counts them for its own mean: where
the loop counts the labels of the step, the first token of a row is included although it is never predicted; l_i, which
the weighter sees, is the mean over predicted tokens. c_it is cross entropy, or the run's other :mod:`token loss
<dataflex.objective.token_losses>`.

Letters: B rows of the micro-batch, T tokens, V vocabulary, S samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dataflex.model.label_logits import IGNORED
from dataflex.objective.label_counts import StepCounts, predicted, targets
from dataflex.objective.samples import ROWS, Samples
from dataflex.objective.token_losses import CROSS_ENTROPY, CrossEntropy, TokenLoss

Weigh = Callable[[torch.Tensor], torch.Tensor]
"""The weighter: (S,) losses -> a scalar that depends on them."""

Total = Callable[[], torch.Tensor]
"""The sum of a micro-batch's token losses, added up as the plain loss adds it up."""

WeighTokens = Callable[[torch.Tensor], torch.Tensor]
"""The weighter of tokens: (B, T) cross entropies at the position before each label -> (B, T) weights z."""

Watch = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Told the (S,) weights w, times the mean z of the sample where tokens have weights; the (S,) factors that the samples'
losses l_i have in the loss of the step; the (S,) labels that are predicted of each; and the (S,) sums of their losses.
"""

Note = Callable[[torch.Tensor], None]
"""Told the (B, T) cross entropies of the tokens, without gradient, at the position before each label."""


@dataclass(frozen=True)
class StepPart:
    """What the micro-batch is part of.

    Attributes:
        step: The counts of the step; weighed by v where sources have weights.
        counts_first: Whether the plain loss is divided by the labels with the first token's among them.
        by_tokens: Whether the step's loss is a mean over tokens and not over samples.
        scale: What the micro-batch's part is multiplied by, so that what the loop does to it is undone.
        sources: (S,) v of each sample; None where all are alike.
        rows: (S,) u of each sample; None where there are none.
        tokens: Gives z of each token; None where there are none.
        mean_token: Z, a number or a scalar on the device.
    """

    step: StepCounts
    counts_first: bool = True
    by_tokens: bool = False
    scale: float = 1.0
    sources: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    tokens: WeighTokens | None = None
    mean_token: torch.Tensor | float = 1.0


def weighted_loss(
    logits_BTV: torch.Tensor,
    labels_BT: torch.Tensor,
    part: StepPart,
    weigh: Weigh,
    token_loss: TokenLoss = CROSS_ENTROPY,
    watch: Watch | None = None,
    samples: Samples = ROWS,
    note: Note | None = None,
    graph: Note | None = None,
) -> torch.Tensor:
    """Returns this micro-batch's part of the step's loss, a scalar.

    Args:
        logits_BTV: Raw logits of any float type.
        labels_BT: Labels before the shift; -100 is ignored.
        part: The step.
        weigh: The weighter.
        token_loss: What a token costs.
        watch: Told the weights.
        samples: What the samples are.
        note: Told the cross entropies.
        graph: Told the token losses, with their graph; where tokens have weights, times z / Z.
    """
    labels_BT = labels_BT.to(logits_BTV.device)
    noted: list[torch.Tensor] = []
    own_note = note if part.tokens is None else noted.append
    c_BT, total = losses_of_tokens(logits_BTV, labels_BT, token_loss, own_note)
    if noted and note is not None:
        note(noted[0])
    batch = _MicroBatch(c_BT, labels_BT, samples, token_loss.counts_first, noted[0] if noted else None)
    return _joined(batch, part, weigh, total, watch, graph)


def weighted_loss_of_tokens(
    c_BT: torch.Tensor,
    labels_BT: torch.Tensor,
    part: StepPart,
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
        part: The step.
        weigh: The weighter.
        token_loss: What a token costs.
        watch: Told the weights.
        samples: What the samples are.
        plain_total: The sum of the losses as the plain loss adds them up, where that is another order than here.
    """
    plain_BT, c_BT = c_BT.detach(), token_loss.from_cross_entropy(c_BT)
    batch = _MicroBatch(c_BT, labels_BT.to(c_BT.device), samples, token_loss.counts_first, plain_BT)
    return _joined(batch, part, weigh, plain_total or c_BT.sum, watch)


def scaled_loss(c_BT: torch.Tensor, factors_BT: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """Returns this micro-batch's part of the step's loss where no weighter takes part: a scalar.

    Args:
        c_BT: (B, T) token losses.
        factors_BT: (B, T) or (B, 1) v u of each token.
        scale: What their sum is multiplied by: what undoes the loop, over the sum of v m over the step.
    """
    return (c_BT * factors_BT).sum() * scale


def losses_of_tokens(
    logits_BTV: torch.Tensor,
    labels_BT: torch.Tensor,
    token_loss: TokenLoss,
    note: Note | None = None,
    graph: Note | None = None,
) -> tuple[torch.Tensor, Total]:
    """Returns (B, T) losses, at the position before each label and 0 where there is none, and what adds them up.

    Args:
        logits_BTV: Raw logits of any float type.
        labels_BT: Labels before the shift, on the same device.
        token_loss: What a token costs.
        note: Told the cross entropies, which cost no second look at the vocabulary here.
        graph: Told the losses that are returned, with their graph.
    """
    B, T, V = logits_BTV.shape
    targets_M = targets(labels_BT).view(-1)
    # The two halves of cross_entropy, apart, so that the token losses cost no second pass over the vocabulary.
    logp = F.log_softmax(logits_BTV.float().view(B * T, V), dim=-1)
    c_M = token_loss.each(logp, targets_M)
    if note is not None:
        with torch.no_grad():
            note(c_M.detach().view(B, T) if token_loss is CROSS_ENTROPY else _cross_entropies(logp, targets_M, (B, T)))
    c_BT = c_M.view(B, T)
    if graph is not None:
        graph(c_BT)
    return c_BT, lambda: token_loss.total(logp, targets_M, c_M)


def _cross_entropies(logp_MV: torch.Tensor, targets_M: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    return F.nll_loss(logp_MV, targets_M, ignore_index=IGNORED, reduction="none").view(shape)


@dataclass(frozen=True)
class _MicroBatch:
    losses: torch.Tensor  # (B, T) c_it
    labels: torch.Tensor  # (B, T)
    samples: Samples
    counts_first: bool
    cross_entropies: torch.Tensor | None  # (B, T) without gradient, where they are needed

    def predicted(self) -> torch.Tensor:
        """Returns n: (S,) labels that are predicted."""
        return self.samples.loss_sums(predicted(self.labels))

    def labelled(self) -> torch.Tensor:
        """Returns (S,) labels, that of a row's first token among them."""
        return self.samples.label_sums(self.labels != IGNORED)


def _joined(
    batch: _MicroBatch,
    part: StepPart,
    weigh: Weigh,
    plain_total: Total,
    watch: Watch | None,
    graph: Note | None = None,
) -> torch.Tensor:
    """Returns 1/N sum_i a_i sum_t c_it, a_i = b v u w N / sum b v m; where all are 1, by the plain loss's own sum."""
    n_S, z_BT = batch.predicted(), _token_weights(batch, part)
    sums_S = batch.samples.loss_sums(batch.losses.detach())
    w_S, scalar = _weights(sums_S, n_S, weigh)
    first = part.counts_first and batch.counts_first
    m_S, N = (batch.labelled(), part.step.labels) if first else (n_S, part.step.predicted)
    N, R = _at_least(N, n_S), _at_least(part.step.samples, n_S)
    x_S = w_S
    for more_S in (part.sources, part.rows):
        x_S = x_S if more_S is None else x_S * more_S
    if part.by_tokens:
        a_S = torch.where(n_S > 0, x_S, 1.0)
        share = _by_source(m_S, part).sum() / N
    else:  # a quotient of integers is exactly 1 where they are equal
        a_S = torch.where(m_S > 0, x_S * (N / (m_S.clamp(min=1) * R)), 1.0).to(batch.losses.dtype)
        share = _by_source(n_S > 0, part).sum() / R
    if watch is not None:
        watch(w_S if z_BT is None else w_S * _means(z_BT, batch, n_S), a_S * n_S / N, n_S, sums_S)
    factors, uniform, losses_BT = batch.samples.at_losses(a_S), (a_S == 1).all(), batch.losses
    if z_BT is not None:
        relative_BT = z_BT / _at_least(part.mean_token, n_S)  # exactly 1 where all are equal and Z is their mean
        relative_BT = torch.where(predicted(batch.labels), relative_BT, 1.0)
        losses_BT, uniform = relative_BT * losses_BT, uniform & (relative_BT == 1).all()
    if graph is not None:
        graph(losses_BT)
    total = (factors * losses_BT).sum()
    loss = _of_value(total, plain_total, uniform) / N
    # A term of the weighter's own that reaches the parameters other than through the losses counts as well, by the
    # micro-batch's share of the step; its value is not added, so that the logged loss stays the weighted loss.
    return (loss + share * (scalar - scalar.detach())) * part.scale


def _token_weights(batch: _MicroBatch, part: StepPart) -> torch.Tensor | None:
    """Returns z: (B, T) without gradient, of any value where no token is predicted; None where there are none."""
    if part.tokens is None:
        return None
    assert batch.cross_entropies is not None
    with torch.no_grad(), torch.autocast(batch.losses.device.type, enabled=False):
        return part.tokens(batch.cross_entropies).to(batch.losses)


def _means(z_BT: torch.Tensor, batch: _MicroBatch, n_S: torch.Tensor) -> torch.Tensor:
    """Returns the mean weight of the tokens of each sample: (S,), 0 for one without any."""
    return batch.samples.loss_sums(torch.where(predicted(batch.labels), z_BT, 0.0)) / n_S.clamp(min=1)


def _at_least(count: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    """Returns a count of the step as a tensor; of a step without any, 1: nothing is divided by 0."""
    found = torch.as_tensor(count, device=like.device)
    return torch.where(found > 0, found, 1)


def _by_source(counts_S: torch.Tensor, part: StepPart) -> torch.Tensor:
    """Returns counts of samples, each weighed by v."""
    return counts_S if part.sources is None else counts_S * part.sources


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


def _weights(sums_S: torch.Tensor, n_S: torch.Tensor, weigh: Weigh) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (S,) weights and the weighter's scalar, from the (S,) sums of token losses and numbers of tokens."""
    losses_S = (sums_S / n_S.clamp(min=1)).requires_grad_()
    with torch.enable_grad(), torch.autocast(losses_S.device.type, enabled=False):
        scalar = weigh(losses_S)
        (gradient_S,) = torch.autograd.grad(scalar, losses_S, retain_graph=True, allow_unused=True)
    uniform = losses_S.new_ones(()) / len(losses_S)  # d mean/dl_i, by the division that autograd makes
    weights_S = torch.zeros_like(losses_S) if gradient_S is None else gradient_S / uniform
    return torch.where(n_S > 0, weights_S, 0.0).detach(), scalar
