"""The losses that a weighter may weigh beside cross entropy: against a slow formula, and against what the plain run
computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from dataflex.model.label_logits import IGNORED
from dataflex.objective.formula import StepPart, weighted_loss
from dataflex.objective.label_counts import StepCounts
from dataflex.objective.token_losses import DynamicFineTuning, LabelSmoothing
from transformers.trainer_pt_utils import LabelSmoother

V, EPSILON = 11, 0.2
LOSSES = {"dft": DynamicFineTuning(), "smoothing": LabelSmoothing(EPSILON)}


def batch(lengths, T=8, seed=0):
    """Logits and labels; row i has ``lengths[i]`` labels at its end, the first token of the row included if all."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(lengths), T, V, generator=generator).requires_grad_()
    labels = torch.randint(0, V, (len(lengths), T), generator=generator)
    for i, n in enumerate(lengths):
        labels[i, : T - n] = IGNORED
    return logits, labels


def sample_losses(name, logits, labels):
    """Slow and obvious: token by token."""
    rows = []
    for row, label in zip(logits, labels, strict=True):
        terms = []
        for t in range(len(label) - 1):
            if label[t + 1] != IGNORED:
                logp = F.log_softmax(row[t], -1)
                target = -logp[label[t + 1]]
                smooth = (1 - EPSILON) * target - EPSILON * logp.mean()
                terms.append(smooth if name == "smoothing" else target * torch.exp(-target).detach())
        rows.append(torch.stack(terms).mean() if terms else torch.zeros(()))
    return torch.stack(rows)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("cuts", [[4], [1, 3], [2, 2]])
def test_samples_are_weighed_by_their_mean_token_loss_however_they_are_split(name, cuts):
    logits, labels = batch([2, 7, 0, 4])
    weights = torch.tensor([0.5, 2.0, 9.0, 0.25])
    seen, parts, start = [], [], 0

    def weigh(losses, part):
        seen.append(losses.detach())
        return (weights[part] * losses).mean()

    for cut in cuts:
        part = slice(start, start + cut)
        objective = StepPart(StepCounts(3, 13, 13))  # of the four rows, three have labels
        parts.append(weighted_loss(logits[part], labels[part], objective, lambda x, p=part: weigh(x, p), LOSSES[name]))
        start += cut
    expected = sample_losses(name, logits, labels)
    assert torch.allclose(torch.cat(seen), expected.detach(), atol=1e-6)
    ours, wanted = torch.stack(parts).sum(), (weights * expected).sum() / 3
    assert ours.item() == pytest.approx(wanted.item(), rel=1e-5)
    got, want = torch.autograd.grad(ours, logits)[0], torch.autograd.grad(wanted, logits)[0]
    assert torch.allclose(got, want, atol=1e-6)
    assert (got[2] == 0).all()


@pytest.mark.parametrize("T", [8, 5])
def test_uniform_weights_are_the_label_smoother_of_transformers(T):
    """With T = 5 the first token of each row has a label too, which the smoother does not count."""
    logits, labels = batch([5, 5, 5], T=T)
    step = StepCounts(3, 15, 15 if T > 5 else 12)
    ours = weighted_loss(logits, labels, StepPart(step), lambda losses: losses.mean(), LOSSES["smoothing"])
    theirs = LabelSmoother(epsilon=EPSILON)({"logits": logits}, labels, shift_labels=True)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    got, want = torch.autograd.grad(ours, logits)[0], torch.autograd.grad(theirs, logits)[0]
    assert torch.allclose(got, want, atol=1e-7)


@pytest.mark.parametrize("count", [None, 15])
@pytest.mark.parametrize("tokens", [15, 60])
def test_uniform_weights_are_the_dft_loss_of_llamafactory_bit_for_bit(tokens, count):
    logits, labels = batch([5, 5, 5])
    step = StepCounts(tokens // 5, torch.tensor(tokens), torch.tensor(tokens))
    ours = weighted_loss(logits, labels, StepPart(step), lambda losses: losses.mean(), DynamicFineTuning(count))
    targets = F.pad(labels, (0, 1), value=IGNORED)[:, 1:].reshape(-1)
    each = F.cross_entropy(logits.view(-1, V), targets, ignore_index=IGNORED, reduction="none")[targets != IGNORED]
    theirs = (each * torch.exp(-each).detach()).sum() / torch.tensor(tokens)
    assert ours.item() == theirs.item()
    assert torch.equal(torch.autograd.grad(ours, logits)[0], torch.autograd.grad(theirs, logits)[0])


@pytest.mark.parametrize("name", LOSSES)
def test_a_micro_batch_without_labels_is_zero_and_not_nan(name):
    logits, labels = batch([0, 0])
    ours = weighted_loss(logits, labels, StepPart(StepCounts(2, 4, 4)), lambda losses: losses.mean(), LOSSES[name])
    assert ours.item() == 0
    assert (torch.autograd.grad(ours, logits)[0] == 0).all()
