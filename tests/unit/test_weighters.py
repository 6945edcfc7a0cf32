"""The weighters of dataflex-weighters: by-hand formulas in float64, invariances, gradients, and two real ranks."""

from __future__ import annotations

import json
import math
import os
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from dataflex.core.errors import ConfigError
from dataflex.core.ranks.gather_samples import gather_losses
from dataflex_weighters.custom import CustomWeighter
from dataflex_weighters.loss import STRATEGIES, LossWeighter, normalised_losses, rows_with_labels, sample_weights
from hypothesis import given
from hypothesis import strategies as st
from rank_group import start

LOSSES = [0.5, 4.0, 1.25, 2.0, 3.5]
COMPARING = [s for s in STRATEGIES if s != "uniform"]


def by_hand(losses: list[float], strategy: str, delta: float, temperature: float) -> list[float]:
    """The paper's formulas in plain Python floats, times G."""
    low, high = min(losses), max(losses)
    if strategy == "uniform" or low == high:
        return [1.0] * len(losses)
    utilities = []
    for loss in losses:
        h = 2 * delta * loss / (high - low) - delta * (high + low) / (high - low)
        utilities.append(
            {"linupper": min(h + delta, delta), "quadratic": 1 - h**2 / delta**2, "extremes": abs(h)}[strategy]
        )
    top = max(utilities)
    raw = [math.exp((u - top) / temperature) for u in utilities]
    return [len(losses) * r / sum(raw) for r in raw]


def context(processes: int = 1) -> SimpleNamespace:
    return SimpleNamespace(accelerator=SimpleNamespace(num_processes=processes, process_index=0))


def batch(rows: int, unlabelled: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    labels = torch.full((rows, 4), 7)
    labels[:, 0] = -100
    labels[list(unlabelled)] = -100
    return {"input_ids": torch.ones(rows, 4, dtype=torch.long), "labels": labels}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("delta", "temperature"), [(1.0, 1.0), (0.5, 2.0), (3.0, 0.25)])
def test_weights_equal_the_formula_computed_by_hand(strategy, delta, temperature):
    weights = sample_weights(torch.tensor(LOSSES, dtype=torch.float64), strategy, delta, temperature)
    expected = torch.tensor(by_hand(LOSSES, strategy, delta, temperature), dtype=torch.float64)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(
    losses=st.lists(st.floats(0, 50, width=32), min_size=1, max_size=20),
    temperature=st.floats(0.05, 20),
    shift=st.floats(-5, 5),
    scale=st.floats(0.1, 10),
)
def test_weights_have_mean_one_and_ignore_scale_and_shift_of_the_losses(strategy, losses, temperature, shift, scale):
    losses_fp64 = torch.tensor(losses, dtype=torch.float64)
    spread = losses_fp64.max() - losses_fp64.min()
    weights = sample_weights(losses_fp64, strategy, temperature=temperature)
    assert (weights >= 0).all()
    assert weights.mean().item() == pytest.approx(1, abs=1e-12)
    if spread > 1e-6:  # below that, the shift rounds the difference away
        moved = sample_weights(scale * losses_fp64 + shift, strategy, temperature=temperature)
        torch.testing.assert_close(moved, weights, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strategy", COMPARING)
def test_weights_follow_the_samples_when_these_change_places(strategy):
    losses, order = torch.tensor(LOSSES), torch.tensor([3, 0, 4, 1, 2])
    weights = sample_weights(losses, strategy)
    torch.testing.assert_close(sample_weights(losses[order], strategy), weights[order])


@pytest.mark.parametrize("strategy", COMPARING)
def test_a_high_temperature_comes_close_to_equal_weights(strategy):
    weights = sample_weights(torch.tensor(LOSSES), strategy, temperature=1e6)
    torch.testing.assert_close(weights, torch.ones(5), rtol=0, atol=1e-5)


def test_each_strategy_puts_the_weight_where_its_name_says():
    losses = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    easy, lower, middle, upper, hard = sample_weights(losses, "linupper").tolist()
    assert easy < lower < middle == upper == hard
    easy, lower, middle, upper, hard = sample_weights(losses, "quadratic").tolist()
    assert easy == hard < lower == upper < middle
    easy, lower, middle, upper, hard = sample_weights(losses, "extremes").tolist()
    assert easy == hard > lower == upper > middle


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("losses", [[2.5], [1.5] * 4, [0.0, 0.0], []])
def test_equal_losses_have_equal_weights_and_no_nan(strategy, losses):
    assert sample_weights(torch.tensor(losses), strategy).tolist() == [1.0] * len(losses)


def test_the_ends_of_the_range_are_exact_in_fp32():
    h = normalised_losses(torch.tensor([3.1, 7.7, 5.3]), delta=1.0)
    assert (h.min().item(), h.max().item()) == (-1.0, 1.0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_gradient_of_the_result_is_the_weights_over_b(strategy):
    losses = torch.tensor(LOSSES, dtype=torch.float64, requires_grad=True)
    result = LossWeighter(strategy).get_weighted_loss(losses, ctx=context(), inputs=batch(5))
    result.backward()
    expected = torch.tensor(by_hand(LOSSES, strategy, 1.0, 1.0), dtype=torch.float64)
    torch.testing.assert_close(losses.grad * 5, expected)
    torch.testing.assert_close(result.detach(), (expected * losses.detach()).mean())


@pytest.mark.parametrize("make", [lambda: LossWeighter("uniform"), CustomWeighter])
def test_uniform_is_the_plain_mean_to_the_last_bit(make):
    losses = torch.rand(7, generator=torch.Generator().manual_seed(0))
    assert make().get_weighted_loss(losses, ctx=context(), inputs=batch(7)).equal(losses.mean())


def test_equal_losses_give_the_plain_mean_to_the_last_bit():
    losses = torch.full((3,), 1.7)
    assert LossWeighter().get_weighted_loss(losses, ctx=context(), inputs=batch(3)).equal(losses.mean())


@pytest.mark.parametrize("strategy", COMPARING)
def test_a_sample_without_labels_moves_neither_minimum_nor_maximum(strategy):
    with_gap = torch.tensor([2.0, 0.0, 3.0, 4.0], requires_grad=True)
    LossWeighter(strategy).get_weighted_loss(with_gap, ctx=context(), inputs=batch(4, unlabelled=(1,))).backward()
    expected = sample_weights(torch.tensor([2.0, 3.0, 4.0]), strategy)
    torch.testing.assert_close(with_gap.grad[[0, 2, 3]] * 4, expected)
    assert with_gap.grad[1] == 0


def test_a_batch_without_any_label_gives_zero_and_no_nan():
    losses = torch.zeros(2, requires_grad=True)
    result = LossWeighter().get_weighted_loss(losses, ctx=context(), inputs=batch(2, unlabelled=(0, 1)))
    result.backward()
    assert result.item() == 0
    assert losses.grad.tolist() == [0, 0]


def test_the_label_of_the_first_token_alone_is_no_label():
    labels = torch.tensor([[5, -100, -100], [-100, -100, 5], [-100, -100, -100]])
    assert rows_with_labels({"labels": labels}, 3, labels.device).tolist() == [False, True, False]
    assert rows_with_labels({}, 2, labels.device).tolist() == [True, True]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"strategy": "liner"}, r"strategy of the loss weighter: found 'liner', allowed: linupper, quadratic"),
        ({"strategy": "linuper"}, "did you mean 'linupper'"),
        ({"strategy": None}, "found None"),
        ({"delta": 0}, "delta of the loss weighter: found 0, allowed: a number above 0"),
        ({"delta": "1.0"}, "found '1.0'"),
        ({"temperature": -1.0}, "temperature of the loss weighter: found -1.0"),
        ({"temperature": float("nan")}, "found nan"),
        ({"temperature": float("inf")}, "found inf"),
        ({"temperature": True}, "found True"),
        ({"delta": -1, "temperature": 0, "strategy": "x"}, "(?s)3 problems.*strategy.*delta.*temperature"),
    ],
)
def test_loss_refuses_a_bad_parameter_by_key_found_and_allowed(params, message):
    with pytest.raises(ConfigError, match=message):
        LossWeighter(**params)


def test_custom_refuses_what_it_does_not_know():
    with pytest.raises(ConfigError, match="strategy of the custom weighter: found 'linupper', allowed: uniform"):
        CustomWeighter(strategy="linupper")
    with pytest.raises(ConfigError, match="CustomWeighter has no parameter temperature"):
        CustomWeighter(temperature=2)


def test_gather_sends_nothing_on_a_single_rank():
    everyone, own = gather_losses(torch.tensor([1.0, 2.0], requires_grad=True), context().accelerator)
    assert everyone.tolist() == [1, 2]
    assert not everyone.requires_grad
    assert own == slice(0, 2)


def _rank(rank: int, port: int, shards: list[list[float]], folder: str) -> None:
    """What one of the ranks does: gathers its shard, weighs it, and writes down what it saw."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(len(shards)), ACCELERATE_USE_CPU="true")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    seen = []
    for strategy in STRATEGIES:
        losses = torch.tensor(shards[rank], requires_grad=True)
        everyone, own = gather_losses(losses, accelerator)
        ctx = SimpleNamespace(accelerator=accelerator, most_samples=max(map(len, shards)))
        result = LossWeighter(strategy).get_weighted_loss(losses, ctx=ctx, inputs=batch(len(shards[rank])))
        result.sum().backward()
        seen.append({"everyone": everyone.tolist(), "own": everyone[own].tolist(), "grad": losses.grad.tolist()})
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(seen, file)
    torch.distributed.destroy_process_group()


def _run_ranks(shards: list[list[float]], folder: str) -> list[list[dict[str, list[float]]]]:
    start(_rank, len(shards), shards, folder)
    results = []
    for r in range(len(shards)):
        with open(f"{folder}/{r}.json") as file:
            results.append(json.load(file))
    return results


def test_two_ranks_with_uneven_batches_weigh_as_one_rank_with_all_of_them(tmp_path):
    shards = [LOSSES[:3], LOSSES[3:]]
    results = _run_ranks(shards, str(tmp_path))
    for i, strategy in enumerate(STRATEGIES):
        expected = by_hand(LOSSES, strategy, 1.0, 1.0)
        for rank, shard in enumerate(shards):
            seen = results[rank][i]
            assert seen["everyone"] == LOSSES
            assert seen["own"] == shard
            mine = expected[:3] if rank == 0 else expected[3:]
            assert [g * len(shard) for g in seen["grad"]] == pytest.approx(mine, rel=1e-5)
