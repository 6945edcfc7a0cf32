"""Weights of tokens in the objective: the formula, its divisor, and what it does not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dataflex.core.errors import ComponentError
from dataflex.core.registry import register_weighter
from dataflex.model.label_logits import IGNORED
from dataflex.objective.formula import StepPart, weighted_loss, weighted_loss_of_tokens
from dataflex.objective.label_counts import StepCounts, predicted
from dataflex.objective.samples import samples_of
from dataflex.objective.token_losses import DynamicFineTuning, LabelSmoothing
from dataflex.testing import TokenRows
from dataflex.train.weighter.base_weighter import Weighter
from weighted_run import weighted

ROWS = TokenRows(24, lengths=range(6, 17), prompt=3)


def by_token(inputs):
    """Weights that every token has wherever it stands: by its id and that of the token before it."""
    tokens = inputs["input_ids"].float()
    return ((tokens + 3 * F.pad(tokens[:, 1:], (0, 1))) % 7) / 4


@register_weighter("own_tokens")
class OwnTokens(Weighter):
    """Weighs tokens by their ids; tells the mean of the step, or 1."""

    weighs_tokens = True

    def __init__(self, weights: str = "ids", mean: bool = True) -> None:
        super().__init__()
        self.weights, self.mean, self.calls = weights, mean, []

    def mean_token_weight(self, batches, *, ctx):
        self.calls.append([len(batch.rows) for batch in batches])
        found = [(self._weights(batch.inputs), predicted(batch.inputs["labels"])) for batch in batches]
        sums = torch.tensor([[z[there].sum(), there.sum()] for z, there in found], dtype=torch.float64).sum(dim=0)
        sums = torch.as_tensor(ctx.accelerator.gather(sums[None])).view(-1, 2).sum(dim=0)
        return float(sums[0] / sums[1]) if self.mean else 1.0

    def _weights(self, inputs):
        return by_token(inputs) if self.weights == "ids" else torch.full(inputs["labels"].shape, float(self.weights))

    def token_weights(self, losses_BT, *, ctx, model, inputs):
        return self._weights(inputs).to(losses_BT)

    def get_weighted_loss(self, losses, *, ctx, model, inputs):
        return losses.mean()


def run(folder, name="own_tokens", params=None, rows=ROWS, keys=None, train=True, **args):
    plain = {
        "max_steps": 3,
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": 4,
    }
    done = weighted(folder, name, params, rows, keys=keys, **(plain | args))
    if train:
        done.train()
    return done


def losses(done):
    return [line["loss"] for line in done.state.log_history if "loss" in line]


def weights_of(done):
    return torch.cat([p.detach().flatten() for p in done.model.parameters()])


# -- the formula


def random_step(seed=0, B=3, T=9, V=13):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, T, V, generator=generator).requires_grad_()
    labels = torch.randint(0, V, (B, T), generator=generator)
    labels[torch.rand(B, T, generator=generator) < 0.3] = IGNORED
    z = torch.rand(B, T, generator=generator)
    u, v, w = (torch.rand(B, generator=generator) for _ in range(3))
    return logits, labels, z, u, v, w


def oracle(logits, labels, z, u, v, w, Z, token_cost):
    """The formula of docs/weighters.md by plain loops in float64, b = 1."""
    above, below = 0.0, 0.0
    for i in range(len(labels)):
        for t in range(labels.shape[1] - 1):
            if labels[i, t + 1] == IGNORED:
                continue
            logp = F.log_softmax(logits[i, t].double(), -1)
            above = above + v[i].double() * u[i].double() * w[i].double() * z[i, t].double() * token_cost(
                logp, labels[i, t + 1]
            )
            below = below + v[i].double()
    return above / (Z * below)


COSTS = {
    "cross entropy": (None, lambda logp, y: -logp[y]),
    "dft": (DynamicFineTuning(), lambda logp, y: -logp[y] * logp[y].detach().exp()),
    "smoothed": (LabelSmoothing(0.1), lambda logp, y: -0.9 * logp[y] - 0.1 * logp.mean()),
}


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("mean", [1.0, 0.37])
def test_token_weights_multiply_source_row_and_sample_weights(cost, mean):
    for seed in range(5):
        logits, labels, z, u, v, w = random_step(seed)
        token_loss, by_hand = COSTS[cost]
        there = predicted(labels)
        n = there.sum(dim=1)
        counts = StepCounts((v * (n > 0)).sum(), (v * n).sum(), (v * n).sum())
        seen = []

        def tokens(c, seen=seen, z=z):
            seen.append(c)
            return z

        part = StepPart(counts, False, True, 1.0, v, u, tokens, torch.tensor(mean))
        given = () if token_loss is None else (token_loss,)
        ours = weighted_loss(logits, labels, part, lambda c, w=w: (w * c).mean(), *given)
        wanted = oracle(logits, labels, z, u, v, w, mean, by_hand)
        assert ours.item() == pytest.approx(wanted.item(), rel=2e-6)
        got, want = torch.autograd.grad(ours, logits)[0], torch.autograd.grad(wanted, logits)[0]
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)
        # the weighter is shown cross entropies, whatever a token costs, at the position before each label
        plain = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
        torch.testing.assert_close(seen[0][:, :-1].flatten(), plain.detach())
        assert not seen[0].requires_grad


def test_equal_weights_are_the_plain_loss_bit_for_bit_where_their_mean_divides():
    logits, labels, *_ = random_step()
    n = int(predicted(labels).sum())
    targets = F.pad(labels, (0, 1), value=IGNORED)[:, 1:]
    theirs = F.cross_entropy(logits.view(-1, 13), targets.reshape(-1), ignore_index=IGNORED, reduction="sum") / n
    for weight in (1.0, 0.5, 0.3):
        Z = torch.tensor(weight)
        part = StepPart(
            StepCounts(3, n, n), False, True, tokens=lambda c, w=weight: torch.full_like(c, w), mean_token=Z
        )
        ours = weighted_loss(logits, labels, part, lambda c: c.mean())
        assert ours.item() == theirs.item()
        assert torch.equal(
            torch.autograd.grad(ours, logits)[0], torch.autograd.grad(theirs, logits, retain_graph=True)[0]
        )


def test_what_is_not_predicted_has_no_weight_whatever_is_given_for_it():
    logits, labels, z, *_ = random_step(1)
    there = predicted(labels)
    n = int(there.sum())

    def loss(z):
        part = StepPart(StepCounts(3, n, n), False, True, tokens=lambda c: z, mean_token=0.5)
        return weighted_loss(logits, labels, part, lambda c: c.mean())

    assert loss(z).item() == loss(torch.where(there, z, torch.nan)).item()


def test_no_token_at_all_gives_zero_and_no_nan():
    logits, labels, *_ = random_step(2)
    n = int(predicted(labels).sum())
    part = StepPart(StepCounts(3, n, n), False, True, tokens=torch.zeros_like, mean_token=torch.tensor(0.0))
    ours = weighted_loss(logits, labels, part, lambda c: c.mean())
    assert ours.item() == 0.0
    assert (torch.autograd.grad(ours, logits)[0] == 0).all()


def test_packed_documents_have_their_mean_weight_in_the_log_and_the_same_loss():
    logits, labels, z, *_ = random_step(3, B=1, T=12)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4]])
    samples, there = samples_of({"position_ids": positions}), predicted(labels)
    n, told = int(there.sum()), []
    part = StepPart(StepCounts(3, n, n), False, True, tokens=lambda c: z, mean_token=0.5)
    packed = weighted_loss(
        logits, labels, part, lambda c: c.mean(), watch=lambda *found: told.append(found), samples=samples
    )
    whole = weighted_loss(logits, labels, part, lambda c: c.mean())
    assert packed.item() == pytest.approx(whole.item(), rel=1e-6)
    means = samples.loss_sums(torch.where(there, z, 0.0)) / samples.loss_sums(there).clamp(min=1)
    torch.testing.assert_close(told[0][0], means)


def test_losses_without_logits_are_weighed_alike():
    logits, labels, z, *_ = random_step(4)
    n = int(predicted(labels).sum())
    part = StepPart(StepCounts(3, n, n), False, True, tokens=lambda c: z, mean_token=0.5)
    c = F.pad(
        F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none").view(3, -1), (0, 1)
    )
    by_losses = weighted_loss_of_tokens(c, labels, part, lambda losses: losses.mean())
    assert by_losses.item() == pytest.approx(weighted_loss(logits, labels, part, lambda losses: losses.mean()).item())


# -- in the trainer


def test_accumulation_does_not_change_the_loss_or_the_weights(tmp_path):
    one = run(tmp_path / "one", per_device_train_batch_size=8)
    two = run(tmp_path / "two", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    eight = run(tmp_path / "eight", per_device_train_batch_size=1, gradient_accumulation_steps=8)
    assert eight.components.weighter.calls[0] == [1] * 8
    for other in (two, eight):
        np.testing.assert_allclose(losses(other), losses(one), rtol=2e-5)
        torch.testing.assert_close(weights_of(other), weights_of(one), rtol=1e-4, atol=1e-6)


def test_the_run_with_weights_of_one_is_the_plain_run_bit_for_bit(tmp_path):
    ours = run(tmp_path / "ours", params={"weights": "1.0"}, gradient_accumulation_steps=2)
    plain = run(tmp_path / "plain", "custom", {}, keys={"weight_objective": "token"}, gradient_accumulation_steps=2)
    halved = run(tmp_path / "half", params={"weights": "0.25"}, gradient_accumulation_steps=2)
    assert losses(ours) == losses(plain) == losses(halved)
    assert torch.equal(weights_of(ours), weights_of(plain))
    assert torch.equal(weights_of(halved), weights_of(plain))


def test_without_the_mean_weights_of_a_quarter_are_a_quarter_of_the_gradient(tmp_path):
    quarter = run(tmp_path / "q", params={"weights": "0.25", "mean": False}, learning_rate=0.4)
    plain = run(tmp_path / "p", "custom", {}, keys={"weight_objective": "token"})
    torch.testing.assert_close(weights_of(quarter), weights_of(plain), rtol=1e-4, atol=1e-6)


def test_a_run_without_logits_is_the_run_with_them(tmp_path):
    full = run(tmp_path / "f", keys={"weight_logits": "full"})
    chunked = run(tmp_path / "c", keys={"weight_logits": "chunked"})
    np.testing.assert_allclose(losses(chunked), losses(full), rtol=1e-4)
    torch.testing.assert_close(weights_of(chunked), weights_of(full), rtol=1e-4, atol=1e-5)


def test_tokens_have_no_weights_during_the_warm_up(tmp_path):
    done = run(tmp_path, keys={"warmup_step": 2})
    assert len(done.components.weighter.calls) == 1


def test_the_log_has_the_mean_weight_of_the_tokens_of_a_sample(tmp_path):
    done = run(tmp_path, params={"weights": "0.25"}, logging_steps=1)
    means = [line["dataflex/weight/mean"] for line in done.state.log_history if "dataflex/weight/mean" in line]
    assert means == [0.25] * 3


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        (lambda c: c[:, 0], r"token_weights of weighter 'bad_tokens' at step 0 returned \(4,\); expected a weight"),
        (lambda c: 1.0, "returned float; expected a weight for each position"),
        (lambda c: c * torch.nan, "token_weights of weighter 'bad_tokens' at step 0 hold a number that is NaN"),
    ],
)
def test_weights_that_are_none_are_refused(tmp_path, returns, message):
    @register_weighter("bad_tokens")
    class BadTokens(OwnTokens):
        def token_weights(self, losses_BT, *, ctx, model, inputs):
            return returns(losses_BT)

    with pytest.raises(ComponentError, match=message):
        run(tmp_path, "bad_tokens")


@pytest.mark.parametrize(
    ("mean", "message"),
    [
        (-1.0, "mean_token_weight of weighter 'bad_mean' at step 0 is -1.0; expected a number of 0 or more"),
        (None, "is None; expected a number"),
        (torch.ones(2), r"has shape \(2,\); expected one number"),
        (torch.tensor(torch.inf), "is inf; expected 0 or more"),
    ],
)
def test_a_mean_that_is_none_is_refused(tmp_path, mean, message):
    @register_weighter("bad_mean")
    class BadMean(OwnTokens):
        def mean_token_weight(self, batches, *, ctx):
            return mean

    with pytest.raises(ComponentError, match=message):
        run(tmp_path, "bad_mean")
