"""Delta_loss draws from a window over the falls of the losses, survives its edge cases, and resumes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.kinds import SELECTOR
from dataflex.core.registry import find
from dataflex.run.state import load_state, save_state
from dataflex.scoring import per_sample_losses
from dataflex.testing import TokenRows, pad_collate, tiny_model
from dataflex_selectors.delta_loss import DeltaLossSelector, window, window_weights
from every_component import run_objects
from hypothesis import given
from hypothesis import strategies as st

# --- the mathematics


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_window_slides_along_a_sigmoid_from_the_largest_falls_to_the_smallest(progress):
    first, last = window(1000, 1000, 0.2, progress)
    assert first == math.floor(800 / (1 + math.exp(-10 * (progress - 0.5))))
    assert last - first == 200


@pytest.mark.parametrize(
    ("learnt", "progress", "rows"),
    [
        pytest.param(450, 0.5, (400, 450), id="cut off at the first negative fall"),
        pytest.param(400, 0.5, (200, 400), id="with nothing left, moved back in front of it"),
        pytest.param(400, 1.0, (200, 400), id="wherever it had slid to"),
        pytest.param(60, 0.5, (0, 60), id="and cut where fewer rows than it holds are in front of it"),
        pytest.param(60, 1.0, (0, 60), id="at the end too"),
        pytest.param(0, 0.5, (0, 1000), id="all rows where every fall is negative"),
    ],
)
def test_the_window_ends_in_front_of_the_first_negative_fall(learnt, progress, rows):
    assert window(learnt, 1000, 0.2, progress) == rows


@given(st.integers(1, 200), st.floats(0.001, 1), st.floats(0, 1), st.data())
def test_the_window_is_never_empty_and_never_outside(size, width, progress, data):
    learnt = data.draw(st.integers(0, size))
    first, last = window(learnt, size, width, progress)
    assert 0 <= first < last <= (learnt or size)


def test_rows_inside_weigh_one_and_those_outside_as_told_and_rows_without_a_fall_nothing():
    deltas = np.array([0.1, np.nan, 0.5, -0.2, 0.4, 0.3])  # sorted: 2 4 5 0 3
    assert window_weights(deltas, 0.4, 0.025, 0.0).tolist() == [0.025, 0, 1, 0.025, 1, 0.025]
    assert window_weights(deltas, 0.4, 0.025, 0.5).tolist() == [0.025, 0, 0.025, 0.025, 1, 1]
    assert window_weights(deltas, 0.4, 0.0, 1.0).tolist() == [1, 0, 0, 0, 0, 1]  # first = 2.98, cut off at row 3
    assert window_weights(-np.abs(deltas), 0.4, 0.0, 1.0).tolist() == [1, 0, 1, 1, 1, 1]
    assert window_weights(np.full(3, np.nan), 0.4, 0.025, 0.5).tolist() == [0, 0, 0]


# --- the selector


def context(update, updates=6):
    return UpdateContext(update, updates, step=10 * update, total_steps=90, learning_rate=1e-3, optimizer=None)


def build(dataset, seed=7, name="delta_loss", **params):
    selector = DeltaLossSelector(**run_objects(dataset), **params)
    selector.bind(name, seed)
    return selector


def choose(selector, count, update, model, updates=6):
    return selector.select(model, 10 * update, count, context=context(update, updates))


def pick(*args, **options):
    return choose(*args, **options).indices.tolist()


def losses(model, dataset):
    return per_sample_losses(model, dataset, collator=pad_collate, progress=False)


@pytest.fixture(scope="module")
def rows():
    return TokenRows(40, lengths=range(6, 20))


@pytest.fixture(scope="module")
def models():
    return [tiny_model(seed=seed) for seed in range(6)]


def test_the_entry_point_leads_to_the_class():
    assert find(SELECTOR, "delta_loss") is DeltaLossSelector


@pytest.mark.parametrize(("reference", "before"), [("warmup", [0, 0, 0, 0]), ("previous", [0, 0, 1, 2])])
def test_losses_are_compared_with_the_reference(rows, models, reference, before):
    selector = build(rows, reference=reference)
    for update in range(4):
        answer = choose(selector, 25, update, models[update])
        expected = losses(models[before[update]], rows) - losses(models[update], rows)
        np.testing.assert_allclose(answer.scores, expected[answer.indices], atol=1e-5)


def test_the_first_update_has_nothing_to_compare_with_and_draws_all_rows_alike(rows, models):
    counts = np.zeros(40)
    for seed in range(400):
        counts[pick(build(rows, seed=seed), 4, 0, models[0])] += 1
    assert ((counts - 40) ** 2 / 40).sum() < 72.1  # chi-square, 39 degrees of freedom, p = 0.001; seeds are fixed


@pytest.mark.parametrize(("update", "updates"), [(1, 2), (3, 6), (5, 6)])
def test_later_updates_draw_from_the_window(rows, models, update, updates):
    selector = build(rows, outside_weight=0.0, replacement=True)
    choose(selector, 4, 0, models[0], updates)
    deltas = losses(models[0], rows) - losses(models[1], rows)
    weights = window_weights(deltas, 0.2, 0.0, update / (updates - 1))
    found = pick(selector, 300, update, models[1], updates)
    assert set(found) == set(np.flatnonzero(weights))


def test_a_single_update_draws(rows, models):
    assert len(set(pick(build(rows), 10, 0, models[0], updates=1))) == 10


def test_an_only_update_after_a_resume_is_at_the_beginning_of_the_schedule(rows, models):
    selector = build(rows, outside_weight=0.0, replacement=True)
    selector.load_state_dict({"before": losses(models[0], rows)})
    deltas = losses(models[0], rows) - losses(models[1], rows)
    found = pick(selector, 300, 0, models[1], updates=1)
    assert set(found) == set(np.argsort(-deltas)[:8])


def test_where_every_loss_has_risen_all_rows_are_drawn_alike(rows, models):
    selector = build(rows)
    selector.load_state_dict({"before": losses(models[1], rows) - 5})
    counts = np.bincount([row for u in range(1, 400) for row in pick(selector, 4, u, models[1], 400)], minlength=40)
    expected = 399 * 4 / 40
    assert ((counts - expected) ** 2 / expected).sum() < 72.1


@pytest.mark.parametrize("reference", ["warmup", "previous"])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_resumed_selector_continues_as_if_never_stopped(rows, models, reference, stop, tmp_path):
    whole, first, resumed = (build(rows, reference=reference) for _ in range(3))
    expected = [pick(whole, 13, update, models[update]) for update in range(6)]
    found = [pick(first, 13, update, models[update]) for update in range(stop)]
    save_state(tmp_path, {"identity": {}, "component": first.state_dict()})
    resumed.load_state_dict(load_state(tmp_path)["component"])
    found += [pick(resumed, 13, update, models[update]) for update in range(stop, 6)]
    assert found == expected


def test_draws_repeat_for_a_seed_and_change_with_the_update_the_seed_and_the_preset(rows, models):
    def second(update=1, **options):
        selector = build(rows, **options)
        pick(selector, 10, 0, models[0])
        return pick(selector, 10, update, models[1])

    assert second() == second()
    assert second() not in (second(update=2), second(seed=8), second(name="other"))


def test_nothing_is_drawn_from_the_global_generators(rows, models):
    before = torch.get_rng_state().tolist(), str(np.random.get_state())
    pick(build(rows), 5, 0, models[0])
    assert (torch.get_rng_state().tolist(), str(np.random.get_state())) == before


def test_rows_without_labels_are_never_drawn_and_too_few_others_are_an_error(rows, models):
    dataset = [row | {"labels": [-100] * len(row["labels"])} if i < 20 else row for i, row in enumerate(rows)]
    selector = build(dataset)
    assert sorted(pick(selector, 20, 0, models[0])) == sorted(pick(selector, 20, 1, models[1])) == list(range(20, 40))
    message = r"21 rows are wanted, but only 20 of 40 have a label .* -> .*replacement: true, or a shorter stretch"
    with pytest.raises(ComponentError, match=message):
        pick(build(dataset), 21, 3, models[0])
    with pytest.raises(ComponentError, match="only 0 of 20 have a label"):
        pick(build(dataset[:20], replacement=True), 1, 0, models[0])


def test_a_window_that_holds_too_few_rows_alone_is_an_error(rows, models):
    selector = build(rows, outside_weight=0)
    pick(selector, 20, 0, models[0])
    with pytest.raises(
        ComponentError, match=r"only \d of 40 are in the window -> use outside_weight above 0, a larger"
    ):
        pick(selector, 20, 1, models[1])


def test_all_bad_parameters_are_reported_at_once():
    bad = {"reference": "init", "window": 0, "outside_weight": 2, "replacement": "no", "token_budget": 0}
    with pytest.raises(ConfigError, match="5 problems") as caught:
        build([], **bad)
    for key in bad:
        assert f"{key} of the delta_loss selector" in str(caught.value)
    assert "found 'init', allowed: warmup, previous" in str(caught.value)
