import pytest
import torch
import torch.nn.functional as F
from dataflex.model.label_logits import IGNORED
from dataflex.objective.formula import StepPart, weighted_loss
from dataflex.objective.label_counts import StepCounts, counted

V = 11


def batch(lengths, T=8, seed=0):
    """Logits and labels; row i has ``lengths[i]`` labels at its end."""
    generator = torch.Generator().manual_seed(seed)
    B = len(lengths)
    logits = torch.randn(B, T, V, generator=generator, dtype=torch.float64).float().requires_grad_()
    labels = torch.randint(0, V, (B, T), generator=generator)
    for i, n in enumerate(lengths):
        labels[i, : T - n] = IGNORED
    return logits, labels


def step(tokens, samples, **more):
    """A step of so many labels, none of them a first token's."""
    return StepPart(StepCounts(samples, tokens, tokens), **more)


def plain(logits, labels, tokens):
    """The loss of transformers: the sum of token losses over the number of labels of the step."""
    targets = F.pad(labels, (0, 1), value=IGNORED)[:, 1:]
    return F.cross_entropy(logits.view(-1, V), targets.reshape(-1), ignore_index=IGNORED, reduction="sum") / tokens


def sample_losses(logits, labels):
    """Slow and obvious: the mean token loss of each row."""
    out = []
    for row, label in zip(logits, labels, strict=True):
        terms = [-F.log_softmax(row[t], -1)[label[t + 1]] for t in range(len(label) - 1) if label[t + 1] != IGNORED]
        out.append(torch.stack(terms).mean() if terms else torch.zeros(()))
    return torch.stack(out)


def test_the_plain_mean_is_the_plain_loss_bit_for_bit_where_rows_have_equal_length():
    logits, labels = batch([5] * 7)
    for tokens, rows in ((35, 7), (140, 28)):  # a whole step, and a quarter of one
        ours = weighted_loss(logits, labels, step(torch.tensor(tokens), rows), lambda losses: losses.mean())
        theirs = plain(logits, labels, tokens)
        assert ours.item() == theirs.item()
        assert torch.equal(torch.autograd.grad(ours, logits)[0], torch.autograd.grad(theirs, logits)[0])


def test_rows_of_any_length_count_alike():
    logits, labels = batch([1, 4, 7])
    ours = weighted_loss(logits, labels, step(torch.tensor(12), 3), lambda losses: losses.mean())
    assert ours.item() == pytest.approx(sample_losses(logits, labels).mean().item(), rel=1e-6)


def test_weights_scale_samples_and_their_gradients():
    logits, labels = batch([2, 4, 7])
    weights = torch.tensor([0.5, 2.0, 0.0])
    ours = weighted_loss(logits, labels, step(torch.tensor(13), 3), lambda losses: (weights * losses).mean())
    expected = (weights * sample_losses(logits, labels)).mean()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    got, want = torch.autograd.grad(ours, logits)[0], torch.autograd.grad(expected, logits)[0]
    assert torch.allclose(got, want, atol=1e-7)
    assert (got[2] == 0).all()


def test_a_nonlinear_scalar_has_its_own_gradient():
    logits, labels = batch([3, 3, 6])
    ours = weighted_loss(logits, labels, step(torch.tensor(12), 3), lambda losses: torch.logsumexp(losses, 0))
    expected = torch.logsumexp(sample_losses(logits, labels), 0)
    got, want = torch.autograd.grad(ours, logits)[0], torch.autograd.grad(expected, logits)[0]
    assert torch.allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("cuts", [[6], [3, 3], [1, 5], [2, 2, 2]])
def test_the_objective_does_not_depend_on_how_rows_are_split(cuts):
    logits, labels = batch([1, 2, 3, 4, 5, 6])
    weights = torch.tensor([0.1, 0.9, 1.3, 0.7, 2.0, 1.0])
    total, start = torch.zeros(()), 0
    for cut in cuts:
        part = slice(start, start + cut)
        total = total + weighted_loss(
            logits[part],
            labels[part],
            step(torch.tensor(21), 6),
            lambda losses, w=weights[part]: (w * losses).mean(),
        )
        start += cut
    assert total.item() == pytest.approx((weights * sample_losses(logits, labels)).sum().item() / 6, rel=1e-6)


def test_a_micro_batch_gives_its_part_of_the_step_times_what_undoes_the_loop():
    logits, labels = batch([2, 6])
    given = step(80, 10, counts_first=False, scale=4.0)
    ours = weighted_loss(logits, labels, given, lambda losses: losses.mean())
    assert ours.item() == pytest.approx(4 * sample_losses(logits, labels).sum().item() / 10, rel=1e-6)
    tokens = weighted_loss(logits, labels, step(80, 10, by_tokens=True), lambda losses: losses.mean())
    assert tokens.item() == pytest.approx(plain(logits, labels, 80).item(), rel=1e-6)


def test_the_first_token_counts_where_the_plain_loss_counts_it():
    logits, labels = batch([7, 8])
    assert counted(labels).tolist() == [2, 15, 14]
    counts = StepCounts(2, 15, 14)
    for first, tokens in ((True, 15), (False, 14)):
        given = StepPart(counts, counts_first=first, by_tokens=True)
        ours = weighted_loss(logits, labels, given, lambda losses: losses.mean())
        assert ours.item() == pytest.approx(plain(logits, labels, tokens).item(), rel=1e-6)


def test_a_row_without_labels_neither_counts_nor_learns():
    logits, labels = batch([0, 4])
    assert counted(labels).tolist() == [1, 4, 4]
    ours = weighted_loss(logits, labels, step(torch.tensor(4), 1), lambda losses: losses.sum())
    gradient = torch.autograd.grad(ours, logits)[0]
    assert (gradient[0] == 0).all()
    assert torch.isfinite(gradient).all()


def test_a_term_that_bypasses_the_losses_still_trains():
    logits, labels = batch([4, 4])
    parameter = torch.tensor(3.0, requires_grad=True)
    ours = weighted_loss(logits, labels, step(torch.tensor(8), 2), lambda losses: losses.mean() + parameter**2)
    assert ours.item() == pytest.approx(plain(logits, labels, 8).item())
    assert torch.autograd.grad(ours, parameter)[0].item() == 6.0
    half = weighted_loss(logits, labels, step(torch.tensor(16), 4), lambda losses: losses.mean() + parameter**2)
    assert torch.autograd.grad(half, parameter)[0].item() == 3.0  # two of the four samples of the step
