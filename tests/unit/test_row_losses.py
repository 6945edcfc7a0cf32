"""Selectors that choose by losses share them with the run, take those that training has seen, and reach every row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.kinds import SELECTOR
from dataflex.discovery.catalog import lookup
from dataflex.discovery.stated_checks import stated_problems
from dataflex.rows.views import PlannedRows
from dataflex.run.state import load_state, save_state
from dataflex.scoring import per_sample_losses
from dataflex.scoring.named_scores import NamedScores
from dataflex.scoring.seen_losses import SeenLosses
from dataflex.testing import TokenRows, pad_collate, tiny_model
from every_component import made

N = 40
SELECTORS = ("loss", "delta_loss")


@pytest.fixture(scope="module")
def rows():
    return TokenRows(N, lengths=range(6, 20))


@pytest.fixture(scope="module")
def models():
    return [tiny_model(seed=seed) for seed in range(4)]


def context(update, scores=None, updates=4):
    return UpdateContext(update, updates, 10 * update, 90, 1e-3, None, scores)


def choose(selector, count, update, model, scores=None):
    if scores is not None:
        scores.begin_update(model, 10 * update)
    return selector.select(model, 10 * update, count, context=context(update, scores))


def passes(model):
    """Returns a list that grows by the rows of each batch that goes through the model."""
    batches = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, given: batches.append(len(given[0])))
    return batches


# --- shared


@pytest.mark.parametrize("name", SELECTORS)
def test_shared_losses_choose_the_same_rows_with_the_same_scores_to_the_last_bit(rows, models, name):
    params = {"token_budget": 70}
    alone, sharing = made(SELECTOR, name, params, dataset=rows), made(SELECTOR, name, params, dataset=rows)
    scores = NamedScores(rows, pad_collate)
    for update, model in enumerate(models):
        expected, found = choose(alone, 12, update, model), choose(sharing, 12, update, model, scores)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_array_equal(found.scores, expected.scores)
        assert found.scores.dtype == expected.scores.dtype


def test_filter_order_and_selector_by_loss_at_one_update_are_one_pass(rows):
    model = tiny_model()
    scores, keeping = NamedScores(rows, pad_collate), made(SELECTOR, "loss", dataset=rows)
    batches = passes(model)
    kept = np.sort(choose(keeping, N // 2, 0, model, scores).indices)
    once = sum(batches)
    part = scores.within(kept)
    placed = made(SELECTOR, "loss", dataset=PlannedRows(rows, kept))
    chosen = placed.select(model, 0, 8, context=context(0, part)).indices
    arranged = scores.of("loss", kept[chosen])
    assert sum(batches) == once == N
    losses = per_sample_losses(model, rows, collator=pad_collate, progress=False)
    np.testing.assert_allclose(arranged, losses[kept[chosen]], rtol=1e-5)


@pytest.mark.parametrize("name", SELECTORS)
def test_a_selector_that_somebody_made_on_other_rows_scores_those_itself(rows, models, name):
    own = TokenRows(9, seed=3)
    found = choose(made(SELECTOR, name, dataset=own), 5, 0, models[0], NamedScores(rows, pad_collate))
    expected = choose(made(SELECTOR, name, dataset=own), 5, 0, models[0])
    np.testing.assert_array_equal(found.indices, expected.indices)


def test_scores_of_all_rows_are_fresh_whatever_training_has_seen(rows, models):
    selector = made(SELECTOR, "loss", {"scores": "seen"}, dataset=rows)
    losses = per_sample_losses(models[0], rows, collator=pad_collate, progress=False)
    np.testing.assert_array_equal(selector.scores(models[0], 3), losses)
    scores = NamedScores(rows, pad_collate, seen=SeenLosses(N))
    scores.begin_update(models[0], 3)
    np.testing.assert_array_equal(selector.scores(models[0], 3, context=context(0, scores)), losses)


# --- seen


class Training:
    """What training saw: rows of given losses at a step."""

    def __init__(self, rows):
        self.seen = SeenLosses(N)
        self.scores = NamedScores(rows, pad_collate, seen=self.seen)

    def sees(self, rows, losses, step):
        self.seen.note(torch.tensor(list(rows)), torch.tensor(list(losses)), step)


def without_labels(rows, *numbers):
    found = [dict(row) for row in rows]
    for number in numbers:
        found[number]["labels"] = [-100] * len(found[number]["labels"])
    return found


@pytest.mark.parametrize("name", SELECTORS)
def test_seen_losses_cost_no_pass_at_all(rows, name):
    model, run = tiny_model(), Training(rows)
    selector = made(SELECTOR, name, {"scores": "seen"}, dataset=rows)
    assert selector.takes_seen
    assert not made(SELECTOR, name, dataset=rows).takes_seen
    batches = passes(model)
    for update in range(3):
        run.sees(range(N), np.arange(N) / (1 + update), 10 * update - 1)
        assert len(choose(selector, 10, update, model, run.scores).indices) == 10
    assert not batches


def test_loss_draws_a_row_never_seen_like_one_of_the_focus_and_a_row_without_labels_never(rows):
    model, dataset = tiny_model(), without_labels(rows, 38, 39)
    run = Training(dataset)
    run.sees(range(20), np.arange(20), 3)  # rows 0 to 6 are the focus, 20 to 37 were never seen
    counts = np.zeros(N)
    for seed in range(300):
        selector = made(SELECTOR, "loss", {"scores": "seen", "replacement": True}, dataset=dataset)
        selector.bind("loss", seed)
        answer = choose(selector, 40, 1, model, run.scores)
        assert np.isnan(answer.scores[answer.indices >= 20]).all()
        counts += np.bincount(answer.indices, minlength=N)
    expected = np.array([5.0] * 7 + [1.0] * 13 + [5.0] * 18 + [0.0] * 2)
    expected *= counts.sum() / expected.sum()
    assert counts[38:].sum() == 0
    assert ((counts - expected)[:38] ** 2 / expected[:38]).sum() < 69.3  # chi-square, 37 degrees, p = 0.001


def test_loss_weighs_rows_never_seen_no_less_than_others_where_the_focus_weighs_less(rows):
    run = Training(rows)
    run.sees(range(20), np.arange(20), 3)
    counts = np.zeros(N)
    for seed in range(200):
        params = {"scores": "seen", "focus_weight": 0.01, "replacement": True}
        selector = made(SELECTOR, "loss", params, dataset=rows)
        selector.bind("loss", seed)
        counts += np.bincount(choose(selector, 40, 1, tiny_model(), run.scores).indices, minlength=N)
    assert abs(counts[20:].mean() / counts[7:20].mean() - 1) < 0.1
    assert counts[:7].mean() < 0.05 * counts[20:].mean()


@pytest.mark.parametrize("name", SELECTORS)
def test_before_training_has_seen_anything_all_rows_with_labels_are_drawn_alike(rows, name):
    dataset = without_labels(rows, 0)
    run = Training(dataset)
    selector = made(SELECTOR, name, {"scores": "seen"}, dataset=dataset)
    assert sorted(choose(selector, N - 1, 0, tiny_model(), run.scores).indices) == list(range(1, N))
    with pytest.raises(ComponentError, match=r"40 rows are wanted, but only 39 of 40 have a label"):
        choose(made(SELECTOR, name, {"scores": "seen"}, dataset=dataset), N, 0, tiny_model(), run.scores)


@pytest.mark.parametrize("name", SELECTORS)
def test_losses_that_are_older_than_max_age_are_computed(rows, models, name):
    run = Training(rows)
    run.sees(range(20), np.full(20, 9.0), 2)
    run.sees(range(20, 30), np.full(10, 8.0), 27)
    selector = made(SELECTOR, name, {"scores": "seen", "max_age": 5}, dataset=rows)
    model = tiny_model(seed=3)
    batches = passes(model)
    choose(selector, 10, 3, model, run.scores)
    assert sum(batches) == 30
    assert run.scores.of("loss", np.arange(20, 30), max_age=5).tolist() == [8.0] * 10


# --- delta_loss of seen losses


def falls(selector, run, update):
    """Returns D of all rows, by drawing each of them once."""
    answer = choose(selector, N, update, tiny_model(), run.scores)
    found = np.empty(N)
    found[answer.indices] = answer.scores
    return found


@pytest.mark.parametrize(("reference", "expected"), [("warmup", [4.0, 7.0, 2.0]), ("previous", [1.0, 5.0, 2.0])])
def test_delta_loss_compares_the_losses_of_a_row_at_two_of_its_own_steps(rows, reference, expected):
    run = Training(rows)
    selector = made(SELECTOR, "delta_loss", {"scores": "seen", "reference": reference}, dataset=rows)
    run.sees([0, 1], [10.0, 10.0], 5)
    assert np.isnan(falls(selector, run, 1)).all(), "a row that was seen once has nothing to compare with"
    run.sees([0, 2], [7.0, 3.0], 15)
    run.sees([1], [8.0], 16)
    np.testing.assert_array_equal(falls(selector, run, 2)[:3], [3.0, 2.0, np.nan])
    run.sees([0, 1, 2], [6.0, 3.0, 1.0], 25)
    np.testing.assert_array_equal(falls(selector, run, 3)[:3], expected)
    np.testing.assert_array_equal(falls(selector, run, 3)[:3], expected)  # not seen again: the fall stands


def test_delta_loss_weighs_rows_without_two_losses_as_those_inside_of_the_window(rows):
    dataset = without_labels(rows, 39)
    run = Training(dataset)
    params = {"scores": "seen", "outside_weight": 0.0, "window": 0.25, "replacement": True}
    selector = made(SELECTOR, "delta_loss", params, dataset=dataset)
    run.sees(range(20), np.full(20, 5.0), 1)
    choose(selector, 40, 0, tiny_model(), run.scores)
    run.sees(range(20), 5.0 - np.arange(20) / 10, 11)
    drawn = choose(selector, 4000, 1, tiny_model(), run.scores).indices
    last = choose(selector, 4000, 3, tiny_model(), run.scores).indices
    falling = np.arange(19, 0, -1)  # row 0 fell by nothing: it has no two different losses
    assert set(drawn) == set(falling[2:7]) | set(range(20, 39)) | {0}
    assert set(last) == set(falling[13:18]) | set(range(20, 39)) | {0}


@pytest.mark.parametrize("stop", [1, 2])
def test_delta_loss_of_seen_losses_resumes_exactly(rows, tmp_path, stop):
    def run_of(selector, run, first, last):
        found = []
        for update in range(first, last):
            rng = np.random.default_rng(update)
            run.sees(rng.permutation(N)[:25], rng.random(25).astype(np.float32), 10 * update - 1)
            found.append(choose(selector, 13, update, tiny_model(), run.scores).indices.tolist())
        return found

    def build():
        return made(SELECTOR, "delta_loss", {"scores": "seen", "reference": "previous"}, dataset=rows)

    expected = run_of(build(), Training(rows), 0, 4)
    first, run = build(), Training(rows)
    found = run_of(first, run, 0, stop)
    save_state(tmp_path, {"identity": {}, "component": first.state_dict(), "seen": run.seen.state_dict()})
    resumed, again = build(), Training(rows)
    state = load_state(tmp_path)
    resumed.load_state_dict(state["component"])
    again.seen.load_state_dict(state["seen"])
    assert found + run_of(resumed, again, stop, 4) == expected


# --- refused


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"scores": "sene"}, "found 'sene', allowed: fresh, seen"),
        ({"max_age": -1}, "found -1, allowed: a whole number of at least 0"),
        ({"scores": "seen", "max_age": 1.5}, "found 1.5, allowed: a whole number of at least 0"),
        ({"max_age": 5}, "found 5, but scores: fresh computes every loss -> set scores: seen"),
    ],
)
def test_what_the_constructor_refuses_validate_says_before_a_model_is_loaded(rows, name, params, message):
    with pytest.raises(ConfigError, match=message):
        made(SELECTOR, name, params, dataset=rows)
    problems = stated_problems(lookup(SELECTOR, name).constructors, params)
    assert [message in str(problem) for problem in problems] == [True]


@pytest.mark.parametrize("name", SELECTORS)
def test_seen_losses_of_other_rows_or_of_no_run_are_refused(rows, models, name):
    selector = made(SELECTOR, name, {"scores": "seen"}, dataset=rows)
    for scores in (None, NamedScores(TokenRows(N), pad_collate, seen=SeenLosses(N))):
        with pytest.raises(ComponentError, match="there are none for these rows -> set scores: fresh"):
            choose(selector, 4, 1, models[0], scores)
    with pytest.raises(ComponentError, match="the run keeps no losses that training has seen"):
        choose(selector, 4, 1, models[0], NamedScores(rows, pad_collate))
