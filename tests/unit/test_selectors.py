"""The selectors pick what their formulas say, repeat from the seed, resume, and refuse what makes no sense."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.kinds import SELECTOR
from dataflex.core.registry import find
from dataflex.testing import TokenRows, tiny_batch, tiny_model
from dataflex.train.selector.base_selector import Selection, Selector
from dataflex_selectors.custom import CustomSelector
from dataflex_selectors.loss import FOCUS, LossSelector, focus_log_weights
from dataflex_selectors.parts.drawing import draw, logarithms, probabilities
from dataflex_selectors.random import RandomSelector
from every_component import run_objects

THIRDS = (1 / 3, 2 / 3)


def context(update):
    return UpdateContext(update=update, updates=9, step=10 * update, total_steps=90, learning_rate=1e-3, optimizer=None)


def build(cls, dataset, seed=7, name=None, **params):
    selector = cls(**run_objects(dataset), **params)
    selector.bind(name or cls.__name__, seed)
    return selector


def pick(selector, count, update=0, model=None):
    answer = selector.select(model, 10 * update, count, context=context(update))
    return np.asarray(answer.indices if isinstance(answer, Selection) else answer)


def focus_probabilities(losses, focus, focus_weight, quantiles, temperature):
    return probabilities(focus_log_weights(losses, focus, focus_weight, quantiles), temperature)


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("name", "cls"), [("random", RandomSelector), ("loss", LossSelector), ("custom", CustomSelector)]
)
def test_entry_points_lead_to_the_classes(name, cls):
    assert find(SELECTOR, name) is cls


# --- loss: the mathematics


@pytest.mark.parametrize("focus", FOCUS)
def test_a_row_of_the_focus_is_focus_weight_times_as_likely_as_any_other(focus):
    losses = np.array([5.0, 1.0, 3.0, 2.0, 6.0, 4.0], dtype=np.float32)  # buckets: low 1 2, medium 3 4, high 5 6
    p = focus_probabilities(losses, focus, 5.0, THIRDS, 1.0)
    members = {"low": [1, 3], "medium": [2, 5], "high": [0, 4]}[focus]
    others = sorted(set(range(6)) - set(members))
    np.testing.assert_allclose(p[members], 5 / 14)
    np.testing.assert_allclose(p[others], 1 / 14)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_is_an_exponent_of_the_weight(temperature):
    p = focus_probabilities(np.arange(9.0), "high", 4.0, THIRDS, temperature)
    assert p[8] / p[0] == pytest.approx(4.0 ** (1 / temperature))


def test_a_tiny_temperature_neither_overflows_nor_excludes_rows():
    logits = focus_log_weights(np.arange(9.0), "low", 5.0, THIRDS)
    assert np.isfinite(logits).all()
    assert sorted(draw(logits, 9, False, generator(), 1e-6)[:3]) == [0, 1, 2]
    assert sorted(draw(logits, 9, False, generator(), 1e-6)) == list(range(9))


def test_a_weight_below_one_turns_the_focus_away():
    p = focus_probabilities(np.arange(3.0), "high", 0.5, THIRDS, 1.0)
    np.testing.assert_allclose(p, [0.4, 0.4, 0.2])


@pytest.mark.parametrize(
    ("quantiles", "sizes"), [((0.1, 0.9), (1, 8, 1)), ((0.5, 0.7), (5, 2, 3)), (THIRDS, (4, 3, 3))]
)
def test_quantiles_end_the_buckets_and_a_row_at_the_end_is_inside(quantiles, sizes):
    losses = generator().permutation(10).astype(np.float32)
    counts = [int((focus_probabilities(losses, f, 5.0, quantiles, 1.0) > 0.1).sum()) for f in FOCUS]
    assert tuple(counts) == sizes


def test_rows_without_a_loss_have_probability_zero_and_move_no_quantile():
    losses = np.array([1.0, np.nan, 2.0, 3.0, np.nan])
    np.testing.assert_allclose(focus_probabilities(losses, "high", 5.0, THIRDS, 1.0), [1 / 7, 0, 1 / 7, 5 / 7, 0])


@pytest.mark.parametrize("focus", FOCUS)
def test_equal_losses_make_all_rows_equally_likely(focus):
    np.testing.assert_allclose(focus_probabilities(np.full(6, 2.5), focus, 5.0, THIRDS, 1.0), 1 / 6)


@pytest.mark.parametrize("replacement", [False, True])
def test_first_picks_follow_the_probabilities(replacement):
    p = np.array([0.5, 0.25, 0.125, 0.125, 0.0])
    source, trials = generator(), 4000
    counts = np.bincount([draw(logarithms(p), 1, replacement, source)[0] for _ in range(trials)], minlength=5)
    chi_square = ((counts[:4] - trials * p[:4]) ** 2 / (trials * p[:4])).sum()
    assert chi_square < 16.3  # 3 degrees of freedom, p = 0.001; the seed is fixed
    assert counts[4] == 0


def test_second_picks_follow_the_probabilities_of_the_rows_left():
    p, source, trials = np.array([0.5, 0.3, 0.2]), generator(), 6000
    pairs = [tuple(draw(np.log(p), 2, False, source)) for _ in range(trials)]
    for first in range(3):
        for second in {0, 1, 2} - {first}:
            expected = p[first] * p[second] / (1 - p[first])
            spread = np.sqrt(trials * expected * (1 - expected))
            assert abs(pairs.count((first, second)) - trials * expected) < 4 * spread


def test_draws_without_replacement_are_different_rows():
    p = np.zeros(50)
    assert len(set(draw(p, 50, False, generator()))) == 50
    assert len(set(draw(p, 50, True, generator()))) < 50


# --- loss: the selector


@pytest.fixture(scope="module")
def rows():
    return TokenRows(30, lengths=range(6, 20))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def own_losses(model, dataset):
    with torch.no_grad():
        return np.array([model(**tiny_batch([row])).loss.item() for row in dataset])


def test_loss_returns_the_losses_of_the_rows_it_picked(model, rows):
    answer = build(LossSelector, rows).select(model, 0, 12, context=context(0))
    assert len(set(answer.indices.tolist())) == 12
    np.testing.assert_allclose(answer.scores, own_losses(model, rows)[answer.indices], rtol=1e-5)


@pytest.mark.parametrize("focus", FOCUS)
def test_loss_with_a_heavy_focus_takes_the_rows_of_that_third(model, rows, focus):
    selector = build(LossSelector, rows, focus=focus, focus_weight=1e9)
    third = np.argsort(own_losses(model, rows))[10 * FOCUS.index(focus) :][:10]
    assert sorted(pick(selector, 10, model=model)) == sorted(third)


def test_loss_repeats_for_a_seed_and_changes_with_the_update_the_seed_and_the_preset(model, rows):
    first = pick(build(LossSelector, rows), 10, 1, model).tolist()
    assert pick(build(LossSelector, rows), 10, 1, model).tolist() == first
    assert pick(build(LossSelector, rows), 10, 2, model).tolist() != first
    assert pick(build(LossSelector, rows, seed=8), 10, 1, model).tolist() != first
    assert pick(build(LossSelector, rows, name="other"), 10, 1, model).tolist() != first


def test_loss_picks_the_same_rows_whatever_the_token_budget(model, rows):
    picks = [pick(build(LossSelector, rows, token_budget=b), 10, 0, model).tolist() for b in (None, 1, 64)]
    assert picks[0] == picks[1] == picks[2]


def test_loss_never_picks_a_row_without_labels(model, rows):
    dataset = [{**row, "labels": [-100] * len(row["labels"])} if i < 10 else row for i, row in enumerate(rows)]
    selector = build(LossSelector, dataset)
    assert sorted(pick(selector, 20, model=model)) == list(range(10, 30))
    assert min(pick(build(LossSelector, dataset, replacement=True), 60, model=model)) >= 10


def test_loss_says_when_too_few_rows_have_labels(model, rows):
    dataset = [{**row, "labels": [-100] * len(row["labels"])} if i < 10 else row for i, row in enumerate(rows)]
    message = r"21 rows are wanted, but only 20 of 30 have a label .* -> .*replacement: true, or a shorter stretch"
    with pytest.raises(ComponentError, match=message):
        pick(build(LossSelector, dataset), 21, 3, model)
    with pytest.raises(ComponentError, match="only 0 of 10 have a label"):
        pick(build(LossSelector, dataset[:10], replacement=True), 1, 0, model)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"focus": "hihg"},
            r"focus of the loss selector: found 'hihg', allowed: low, medium, high -> did you mean 'high'\?",
        ),
        ({"focus_weight": 0}, "focus_weight of the loss selector: found 0, allowed: a number above 0"),
        ({"focus_weight": "5"}, "focus_weight of the loss selector: found '5'"),
        ({"temperature": float("nan")}, "temperature of the loss selector: found nan, allowed: a number above 0"),
        (
            {"quantiles": [0.6, 0.3]},
            r"quantiles of the loss selector: found \[0.6, 0.3\], allowed: two numbers 0 < a < b < 1",
        ),
        ({"quantiles": 0.5}, "quantiles of the loss selector: found 0.5"),
        ({"replacement": "no"}, "replacement of the loss selector: found 'no', allowed: true, false"),
        ({"token_budget": 0}, "token_budget of the loss selector: found 0, allowed: a whole number of at least 1"),
    ],
)
def test_loss_refuses_parameters_out_of_range(params, message):
    with pytest.raises(ConfigError, match=message):
        build(LossSelector, [], **params)


def test_loss_reports_all_bad_parameters_at_once():
    with pytest.raises(ConfigError, match="2 problems") as caught:
        build(LossSelector, [], focus="no", temperature=-1)
    assert "focus of the loss" in str(caught.value)
    assert "temperature of the loss" in str(caught.value)


def test_loss_takes_the_numbers_that_yaml_gives():
    selector = build(LossSelector, [], focus_weight=3, quantiles=[0.2, 0.5], temperature=2)
    assert (selector.focus_weight, selector.quantiles, selector.temperature) == (3.0, (0.2, 0.5), 2.0)
    assert build(LossSelector, []).quantiles == THIRDS


# --- random


@pytest.mark.parametrize("count", [3, 7, 10])
def test_random_picks_no_row_twice_at_once_and_none_again_before_all_were_seen(count):
    selector = build(RandomSelector, range(10))
    picks = [pick(selector, count, update) for update in range(20)]
    assert all(len(set(rows)) == count for rows in picks)
    seen = np.concatenate(picks)
    for start in range(0, len(seen) - 9, 10):
        assert sorted(seen[start : start + 10]) == list(range(10))


def test_random_passes_have_different_orders():
    selector = build(RandomSelector, range(50))
    assert pick(selector, 50).tolist() != pick(selector, 50, 1).tolist() != list(range(50))


def test_random_continues_after_its_warm_up_which_is_every_selectors():
    selector = build(RandomSelector, range(10))
    warm = selector.warmup(4)
    assert warm.tolist() == Selector.warmup(selector, 4).tolist()
    assert sorted([*warm, *pick(selector, 6)]) == list(range(10))


def test_random_warm_up_with_replacement_may_be_longer_than_the_dataset():
    assert np.bincount(build(RandomSelector, range(5)).warmup(10, replacement=True)).tolist() == [2] * 5


def test_random_with_replacement_is_uniform_and_repeats_rows():
    selector = build(RandomSelector, range(10), replacement=True)
    counts = np.bincount(np.concatenate([pick(selector, 500, update) for update in range(10)]), minlength=10)
    assert ((counts - 500) ** 2 / 500).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001; the seed is fixed
    assert pick(selector, 20, 3).tolist() == pick(selector, 20, 3).tolist() != pick(selector, 20, 4).tolist()


def test_random_depends_on_the_seed():
    assert pick(build(RandomSelector, range(50)), 50).tolist() != pick(build(RandomSelector, range(50), 8), 50).tolist()


def test_random_refuses_a_replacement_that_is_no_boolean():
    with pytest.raises(ConfigError, match="replacement of the random selector: found 1, allowed: true, false"):
        build(RandomSelector, [], replacement=1)


# --- custom


@pytest.mark.parametrize(
    ("order", "picked"),
    [("forward", [[0, 1, 2], [3, 4, 0], [1, 2, 3]]), ("backward", [[4, 3, 2], [1, 0, 4], [3, 2, 1]])],
)
def test_custom_takes_rows_in_its_order_and_continues_round_the_end(order, picked):
    selector = build(CustomSelector, range(5), order=order)
    assert [pick(selector, 3, update).tolist() for update in range(3)] == picked


def test_custom_refuses_another_order():
    with pytest.raises(ConfigError, match=r"order of the custom .* 'foward', .* -> did you mean 'forward'\?"):
        build(CustomSelector, [], order="foward")


# --- all of them


@pytest.mark.parametrize("cls", [RandomSelector, CustomSelector, LossSelector])
def test_a_resumed_selector_continues_as_if_never_stopped(cls, model, rows):
    whole, first, resumed = build(cls, rows), build(cls, rows), build(cls, rows)
    expected = [pick(whole, 13, update, model).tolist() for update in range(6)]
    found = [pick(first, 13, update, model).tolist() for update in range(3)]
    resumed.load_state_dict(first.state_dict())
    found += [pick(resumed, 13, update, model).tolist() for update in range(3, 6)]
    assert found == expected


@pytest.mark.parametrize("cls", [RandomSelector, CustomSelector, LossSelector])
def test_selectors_draw_nothing_from_the_global_generators(cls, model, rows):
    before = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())
    pick(build(cls, rows), 5, model=model)
    assert (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())) == before


@pytest.mark.parametrize("cls", [RandomSelector, CustomSelector, LossSelector])
def test_answers_are_integers_in_range(cls, model, rows):
    picked = pick(build(cls, rows), 30, model=model)
    assert picked.dtype == np.int64
    assert sorted(picked) == list(range(30))
