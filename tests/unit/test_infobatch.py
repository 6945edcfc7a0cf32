"""Infobatch leaves out rows that are learnt well, and weighs the others of them so that nothing changes on average."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from dataflex.core.context import SEEN_ONLY, UpdateContext
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.kinds import SELECTOR
from dataflex.discovery.component_classes import find
from dataflex.testing import TokenRows
from dataflex_selectors.infobatch import InfoBatchSelector, kept_of, number_kept, well_learnt
from every_component import run_objects
from golden_numbers import golden_cases

CASES = golden_cases("infobatch")
TOTAL = 100


class Seen:
    """The run's scores, whose losses a test sets."""

    def __init__(self, losses):
        self.losses = np.asarray(losses, dtype=np.float64)

    def are_of(self, dataset):
        return len(dataset) == len(self.losses)

    def of(self, name, rows_S=None, *, max_age=0, how=None):
        assert (name, max_age) == ("loss", SEEN_ONLY), "no pass of the model is asked for"
        return self.losses


def build(size, **params):
    selector = InfoBatchSelector(**run_objects(TokenRows(size, lengths=4)), **params)
    selector.bind("infobatch", 7)
    return selector


def select(selector, count, losses, step=0):
    context = UpdateContext(0, 9, step, TOTAL, 1e-3, None, scores=None if losses is None else Seen(losses))
    return selector.select(None, step, count, context=context)


def scores_before(case, epoch):
    """Returns the losses that an epoch of a golden case is pruned by."""
    outputs = case["outputs"]
    return np.array(outputs["epochs"][epoch - 1]["scores_after"] if epoch else outputs["initial_scores"])


EPOCHS = [
    pytest.param(case, epoch, id=f"{case['name'][:40]}-{epoch}")
    for case in CASES
    for epoch in range(len(case["outputs"]["epochs"]))
]


def test_the_entry_point_leads_to_the_class():
    assert find(SELECTOR, "infobatch") is InfoBatchSelector


@pytest.mark.parametrize(("case", "epoch"), EPOCHS)
def test_rows_below_the_mean_their_number_and_weights_are_those_of_the_official_programs(case, epoch):
    params, there = case["params"], case["outputs"]["epochs"][epoch]
    least = 0.1 if params["variant"] == "package" else 0.0  # the research version has no lower limit
    prune = params["prune_ratio"] if params["variant"] == "package" else 1 - params["keep_ratio"]
    keep = build(4, prune=prune, least_kept=least).keep
    assert keep == pytest.approx(case["outputs"]["keep_ratio"])
    losses = scores_before(case, epoch)
    if "mean_score_before" in there:
        assert losses.mean() == pytest.approx(there["mean_score_before"], rel=1e-6)
    if there["draw"] is None:  # the last part of the run
        return
    learnt = np.flatnonzero(well_learnt(losses))
    assert learnt.tolist() == sorted(there["draw"]["pool"])
    exact = case["outputs"]["keep_ratio"] * len(learnt)
    if there["draw"]["num_to_draw"] != number_kept(len(learnt), keep, 0.0):
        assert exact == pytest.approx(there["draw"]["num_to_draw"] + 1), (
            "0.9999999999999998 rows are one: theirs is none"
        )
    weights = np.ones(len(losses))
    weights[there["draw"]["drawn"]] = 1 / keep
    np.testing.assert_allclose(weights, there["weights"], rtol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"][:40])
def test_a_pass_with_the_losses_of_the_official_program_keeps_what_it_keeps_but_for_which_are_drawn(case):
    params = case["params"]
    prune = params["prune_ratio"] if params["variant"] == "package" else 1 - params["keep_ratio"]
    for epoch, there in enumerate(case["outputs"]["epochs"]):
        losses = scores_before(case, epoch)
        selector = build(len(losses), prune=prune, delta=1.0, least_kept=0.1 if params["variant"] == "package" else 0.0)
        selector._begin(losses, there["draw"] is not None)
        order = selector._rows_in_order()
        draw = there["draw"] or {"pool": [], "num_to_draw": 0}  # None: the last part of the run
        always = np.setdiff1d(np.arange(len(losses)), np.array(draw["pool"], dtype=np.int64))
        assert set(always.tolist()) <= set(order.tolist())
        more = len(order) - len(always) - draw["num_to_draw"]
        assert more in (0, 1), "the fraction of a row is rounded by chance, theirs is cut"


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("count", [1, 3, 10])
def test_the_number_kept_is_on_average_exactly_the_share(count, keep):
    chances = (np.arange(1000) + 0.5) / 1000
    mean = np.mean([number_kept(count, keep, chance) for chance in chances])
    assert mean == pytest.approx(keep * count, abs=1e-3)


@pytest.mark.parametrize("draw", ["number", "independent"])
def test_the_gradient_of_a_pass_is_on_average_that_of_all_rows(draw):
    """Over 4,000 draws; five standard errors."""
    rng = np.random.default_rng(0)
    losses, gradients_N3 = rng.exponential(size=9), rng.standard_normal((9, 3))
    learnt, sums = np.flatnonzero(well_learnt(losses)), []
    for number in range(4000):
        weights = np.ones(9)
        weights[learnt] = 0.0
        weights[kept_of(learnt, 0.3, draw, np.random.default_rng(number))] = 1 / 0.3
        sums.append(weights @ gradients_N3)
    error = np.std(sums, axis=0) / np.sqrt(len(sums))
    assert (np.abs(np.mean(sums, axis=0) - gradients_N3.sum(axis=0)) < 5 * error).all()
    assert (error > 0).all()


def test_every_subset_of_the_number_is_equally_likely():
    learnt, found = np.arange(4), {}
    for number in range(3000):
        drawn = tuple(sorted(kept_of(learnt, 0.5, "number", np.random.default_rng(number)).tolist()))
        found[drawn] = found.get(drawn, 0) + 1
    assert set(found) == set(itertools.combinations(range(4), 2))
    assert max(found.values()) - min(found.values()) < 140, "500 each: six standard deviations"


def test_the_first_pass_has_every_row_once_and_no_weights_but_one():
    selector = build(10)
    chosen = [select(selector, 5, np.full(10, np.nan)) for _ in range(2)]
    assert sorted(np.concatenate([each.indices for each in chosen]).tolist()) == list(range(10))
    assert all((each.weights == 1).all() for each in chosen)


def test_a_pass_that_ends_inside_of_a_stretch_is_followed_by_the_next():
    selector = build(8)
    losses = np.array([1.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5.0, 5.0])
    first = select(selector, 20, losses)
    passes = [first.indices[:6], first.indices[6:12], first.indices[12:18]]
    for each in passes:
        assert len(set(each.tolist())) == 6
        assert {4, 5, 6, 7} <= set(each.tolist())
    np.testing.assert_array_equal(first.weights, np.where(first.indices < 4, 2.0, 1.0))
    np.testing.assert_array_equal(first.scores, losses[first.indices])
    assert len({tuple(each.tolist()) for each in passes}) == 3
    begun = [{"pass": number, "of": 8, "left_out": 2} for number in (1, 2, 3, 4)]
    assert selector.details() == {"passes_begun": begun}
    select(selector, 2, losses)
    assert selector.details() == {}, "no pass began there"


def test_from_delta_on_every_row_is_trained_on_with_weight_one_also_in_the_middle_of_a_pass():
    """The package's weights stay raised there unless the number of epochs times delta is a whole number."""
    selector = build(8, delta=0.66)
    losses = np.array([1.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5.0, 5.0])
    assert set(select(selector, 3, losses, step=65).weights.tolist()) <= {1.0, 2.0}
    last = select(selector, 8, losses, step=66)
    assert sorted(last.indices.tolist()) == list(range(8))
    assert (last.weights == 1).all()


@pytest.mark.parametrize(
    ("losses", "params"), [(np.ones(8), {}), (np.arange(8.0), {"prune": 0.0}), (np.arange(8.0), {"delta": 0.0})]
)
def test_nothing_is_left_out_where_all_losses_are_equal_and_where_nothing_may_be(losses, params):
    chosen = select(build(8, **params), 8, losses)
    assert sorted(chosen.indices.tolist()) == list(range(8))
    assert (chosen.weights == 1).all()


def test_a_row_that_was_never_seen_is_kept_and_does_not_enter_the_mean():
    losses = np.array([np.nan, 11.0, 12.0, 10.0])
    assert well_learnt(losses).tolist() == [False, False, False, True]
    assert 0 in select(build(4), 3, losses).indices


def test_however_much_is_pruned_a_share_stays():
    assert build(4, prune=0.95).keep == pytest.approx(0.1)
    assert build(4, prune=0.95, least_kept=0.0).keep == pytest.approx(0.05)


@pytest.mark.parametrize("cut", range(1, 6))
def test_a_resumed_run_goes_on_with_the_rows_of_the_pass(cut):
    losses = np.random.default_rng(1).exponential(size=11)
    whole, parted = build(11), build(11)
    expected = [select(whole, 4, losses, 10 * number) for number in range(6)]
    for number in range(cut):
        select(parted, 4, losses, 10 * number)
    resumed = build(11)
    resumed.load_state_dict(parted.state_dict())
    for number in range(cut, 6):
        found = select(resumed, 4, losses, 10 * number)
        np.testing.assert_array_equal(found.indices, expected[number].indices)
        np.testing.assert_array_equal(found.weights, expected[number].weights)


def test_the_state_takes_two_bits_for_each_row():
    state = build(8000).state_dict()
    assert state["kept"].nbytes + state["learnt"].nbytes == 2000


def test_a_run_that_keeps_no_seen_losses_is_refused():
    with pytest.raises(ComponentError, match="there are none for these rows -> run it in a trainer of dataflex"):
        select(build(4), 2, None)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"prune": 1.0}, "prune of the infobatch selector: found 1.0, allowed: a number from 0 below 1"),
        ({"delta": 1.5}, "delta of the infobatch selector: found 1.5, allowed: a number from 0 to 1"),
        ({"draw": "all"}, "draw of the infobatch selector: found 'all', allowed: number, independent"),
        ({"least_kept": -0.1}, "least_kept of the infobatch selector: found -0.1"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(params, said):
    with pytest.raises(ConfigError) as caught:
        build(4, **params)
    assert said in str(caught.value)
