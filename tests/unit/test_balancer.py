"""The balancer of losses against its formula, and the weighter that balances sources with it."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from balancer_rank import CALLS, ITEMS, rank, tensors
from dataflex.core.errors import ConfigError
from dataflex.rows.views import MixedSources
from dataflex.testing import TokenRows, tiny_batch, tiny_model
from dataflex_weighters.balancer import BalancerWeighter, balanced
from dataflex_weighters.parts.loss_balancer import Balancer, RunningMeans
from rank_group import start
from weighted_run import weighted


def two_losses(x):
    return {"1": F.l1_loss(x, torch.ones(1)), "2": 100 * F.l1_loss(x, -torch.ones(1))}


def test_two_opposite_losses_of_different_scale_cancel_only_when_rescaled():
    for rescale, expected in ((False, 99), (True, 0)):
        x = torch.zeros(1, requires_grad=True)
        Balancer({"1": 1, "2": 1}, rescale_grads=rescale).backward(two_losses(x), x)
        assert x.grad.tolist() == [expected]


def test_weights_are_shares_of_the_gradient_and_total_norm_its_size():
    x = torch.zeros(1, requires_grad=True)
    Balancer({"1": 3, "2": 1, "absent": 9}, total_norm=2.0).backward(two_losses(x), x)
    assert x.grad.item() == pytest.approx(2 * (0.25 - 0.75))
    x = torch.zeros(1, requires_grad=True)
    Balancer({"1": 3, "2": 1}, rescale_grads=False).backward(two_losses(x), x)
    assert x.grad.item() == pytest.approx(100 - 3)


@pytest.mark.parametrize("per_batch_item", [True, False])
@pytest.mark.parametrize("beta", [0.0, 0.9, 1.0])
def test_several_calls_equal_the_formula_step_by_step(per_batch_item, beta):
    generator = torch.Generator().manual_seed(0)
    weights = {"a": 1.0, "b": 2.0}
    balancer = Balancer(weights, ema_decay=beta, per_batch_item=per_batch_item, epsilon=0.1, total_norm=1.5)
    total, fix = dict.fromkeys(weights, 0.0), dict.fromkeys(weights, 0.0)
    for _ in range(4):
        x = torch.randn(3, 2, 4, generator=generator, requires_grad=True)
        scale = torch.rand(3, 2, 4, generator=generator)
        losses = {"a": (scale * x).sum(), "b": (x**2).sum()}
        gradients = {"a": scale, "b": 2 * x.detach()}
        balancer.backward(losses, x)
        expected = torch.zeros_like(x)
        for name, g in gradients.items():
            n = sum(item.norm() for item in g) / 3 if per_batch_item else g.norm()
            total[name] = beta * total[name] + n.item()
            fix[name] = beta * fix[name] + 1
            expected += weights[name] / 3 * 1.5 * g / (0.1 + total[name] / fix[name])
        torch.testing.assert_close(x.grad, expected)


def test_the_gradient_goes_on_behind_the_input_and_not_into_the_heads():
    layer, head = torch.nn.Linear(4, 3), torch.nn.Linear(3, 1)
    hidden = layer(torch.randn(5, 4))
    Balancer({"a": 1.0}).backward({"a": head(hidden).sum()}, hidden)
    assert layer.weight.grad is not None
    assert head.weight.grad is None


def test_the_parameters_get_the_balanced_gradient_and_not_that_of_the_sum():
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(4, 3), torch.randn(5, 4)
    hidden = layer(x)
    losses = {"small": (hidden**2).sum(), "large": 1000 * hidden.sum()}
    Balancer({"small": 1, "large": 1}).backward(losses, hidden)
    g_small, g_large = 2 * hidden.detach(), torch.full_like(hidden, 1000)
    g = sum(0.5 * g / g.norm(dim=1).mean() for g in (g_small, g_large))
    torch.testing.assert_close(layer.weight.grad, g.T @ x)
    torch.testing.assert_close(layer.bias.grad, g.sum(dim=0))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    start(rank, 2, 2, str(folder))
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(2)]


@pytest.mark.parametrize("per_batch_item", [True, False])
def test_two_ranks_scale_by_the_norms_of_both(two_ranks, per_batch_item):
    """Fails where a rank uses its own norms: its losses would then count for more or less than the other rank's."""
    found = [answer[str(per_batch_item)] for answer in two_ranks]
    total, fix = {"a": 0.0, "b": 0.0}, 0.0
    for call in range(CALLS):
        parts = [tensors(number, call) for number in range(2)]
        gradients = {"a": [scale for _, scale in parts], "b": [2 * x for x, _ in parts]}
        fix = 0.5 * fix + 1
        for name, of_ranks in gradients.items():
            if per_batch_item:
                n = torch.cat(of_ranks).norm(dim=1).mean().item()
            else:
                n = sum(len(g) * g.norm().item() for g in of_ranks) / sum(ITEMS)
            total[name] = 0.5 * total[name] + n
        means = {name: value / fix for name, value in total.items()}
        for number in range(2):
            expected = gradients["a"][number] / 3 / means["a"] + 2 * gradients["b"][number] / 3 / means["b"]
            torch.testing.assert_close(torch.tensor(found[number]["grads"][call]), expected)
            metrics = found[number]["metrics"][call]
            assert metrics == pytest.approx({f"ratio_{k}": v / sum(means.values()) for k, v in means.items()})
            assert sum(metrics.values()) == pytest.approx(1)


def test_metrics_are_shares_of_the_norms_and_only_on_demand():
    x = torch.zeros(1, requires_grad=True)
    silent, telling = Balancer({"1": 1, "2": 1}), Balancer({"1": 1, "2": 1}, monitor=True)
    returned = [balancer.backward(two_losses(x), x).item() for balancer in (silent, telling)]
    assert silent.metrics == {}
    assert telling.metrics == pytest.approx({"ratio_1": 1 / 101, "ratio_2": 100 / 101})
    assert returned == pytest.approx([0.5 * 1 + 0.5 * 100 / 100] * 2)


def test_the_means_continue_from_a_checkpoint():
    torch.manual_seed(0)
    data = [torch.randn(2, 3) for _ in range(4)]

    def gradients(balancer, tensors):
        found = []
        for tensor in tensors:
            x = tensor.clone().requires_grad_()
            balancer.backward({"a": (x**2).sum(), "b": x.sum()}, x)
            found.append(x.grad)
        return found

    whole, first, second = (Balancer({"a": 1, "b": 1}, ema_decay=0.5) for _ in range(3))
    expected = gradients(whole, data)
    gradients(first, data[:2])
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(gradients(second, data[2:]), expected[2:], strict=True))


def test_a_loss_without_gradient_adds_nothing_and_no_nan():
    x = torch.ones(2, requires_grad=True)
    Balancer({"a": 1, "b": 1}, epsilon=0.0).backward({"a": (0 * x).sum(), "b": x.sum()}, x)
    assert x.grad.tolist() == [0.5, 0.5]


def test_wrong_losses_and_parameters_are_named():
    x = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match=r"no weight for the losses \['c'\]; there are weights for a"):
        Balancer({"a": 1}).backward({"c": x.sum()}, x)
    with pytest.raises(ValueError, match="the loss 'a' has no gradient at the input"):
        Balancer({"a": 1}).backward({"a": torch.ones(1, requires_grad=True).sum()}, x)
    with pytest.raises(ValueError, match="all losses that were given have weight 0: a"):
        Balancer({"a": 0, "b": 1}).backward({"a": x.sum()}, x)
    with pytest.raises(ConfigError, match=r"(?s)5 problems.*weights.a.*rescale.*total_norm.*ema_decay.*epsilon"):
        Balancer({"a": -1}, rescale_grads=1, total_norm=0, ema_decay=1.1, epsilon=-1)


def test_a_number_that_is_left_out_keeps_its_mean():
    means = RunningMeans(0.9)
    means.update({"a": 1.0, "b": 5.0})
    assert means.update({"a": 3.0}) == pytest.approx({"a": (0.9 + 3) / 1.9, "b": 5.0})


def test_lambda_is_inverse_to_the_norm_with_mean_one_over_the_rows():
    found = balanced({"a": 1, "b": 1, "c": 1}, {"a": 2.0, "b": 8.0}, {"a": 30, "b": 10}, 0.0)
    assert found["a"] / found["b"] == pytest.approx(4)
    assert (30 * found["a"] + 10 * found["b"]) / 40 == pytest.approx(1)
    assert set(found) == {"a", "b"}
    off = balanced({"a": 1, "b": 0}, {"a": 2.0, "b": 8.0}, {"a": 30, "b": 10}, 0.0)
    assert off == pytest.approx({"a": 1, "b": 0})


class Copies(TokenRows):
    """Rows that all are the same: their losses fall quickly, and so do their gradients."""

    def __getitem__(self, index):
        return super().__getitem__(0)


SOURCES = {"same": Copies(20, lengths=10), "noise": TokenRows(20, lengths=range(6, 15), seed=4)}


def run(folder, params=None, resume=None, **args):
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 6, "learning_rate": 1e-2}
    return weighted(folder, "balancer", params, SOURCES, **(sizes | args))


def norm_by_hand(model, row):
    """|d l_i / d h_i| of one row by itself."""
    batch = tiny_batch([row])
    states = model.model(batch["input_ids"]).last_hidden_state.detach().requires_grad_()
    logits = model.lm_head(states)[0, :-1].float()
    loss = F.cross_entropy(logits, batch["labels"][0, 1:], ignore_index=-100)
    return torch.autograd.grad(loss, states)[0].norm().item()


@pytest.mark.parametrize("split", [(8, 1), (4, 2), (1, 8)])
def test_the_norms_are_those_of_each_rows_own_loss_however_the_step_is_split(tmp_path, split):
    size, accumulation = split
    done = run(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, max_steps=1)
    rows, plain = [], done.component.get_weighted_loss

    def get_weighted_loss(losses, **kwargs):
        rows.extend(done.batch_rows.rows.tolist())
        return plain(losses, **kwargs)

    done.component.get_weighted_loss = get_weighted_loss
    done.train()
    fresh, mixed = tiny_model(), MixedSources(SOURCES)
    for k, name in enumerate(SOURCES):
        norms = [norm_by_hand(fresh, mixed[row]) for row in rows if (row >= 20) == k]
        assert done.component._norms.means()[name] == pytest.approx(sum(norms) / len(norms), rel=1e-4)


def test_each_source_gets_the_share_of_the_gradient_that_was_asked_for(tmp_path):
    done = run(tmp_path, {"ema_decay": 0.5, "weights": {"noise": 2.0}})
    done.train()
    weights, norms = done.component.by_source, done.component._norms.means()
    assert norms["same"] != pytest.approx(norms["noise"], rel=0.1)
    assert weights["noise"] * norms["noise"] == pytest.approx(2 * weights["same"] * norms["same"])
    rows = done.component._rows.means()
    assert sum(weights[name] * rows[name] for name in rows) == pytest.approx(sum(rows.values()))
    first, *_, last = [line for line in done.state.log_history if "loss" in line]
    assert (first["dataflex/weight/min"], first["dataflex/weight/max"]) == (1, 1)
    assert last["dataflex/weight/max"] > last["dataflex/weight/min"]


def test_a_resumed_run_weighs_as_the_whole_one(tmp_path):
    whole = run(tmp_path / "w", {"weights": {"noise": 2.0}}, save_strategy="steps", save_steps=1)
    whole.train()
    resumed = run(tmp_path / "r", {"weights": {"noise": 2.0}})
    resumed.train(resume_from_checkpoint=str(tmp_path / "w" / "checkpoint-3"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_the_weighter_refuses_what_it_cannot_balance():
    with pytest.raises(ConfigError, match=r"(?s)3 problems.*does not say which source.*ema_decay.*epsilon"):
        BalancerWeighter(TokenRows(3), ema_decay=2, epsilon=None)
    with pytest.raises(ConfigError, match=r"weights.nose of the balancer weighter: .* -> did you mean 'noise'"):
        BalancerWeighter(MixedSources(SOURCES), {"nose": 1.0})
