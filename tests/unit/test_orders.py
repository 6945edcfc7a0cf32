"""Every order: a permutation whatever the scores, the authors' one where they published a program, and its errors."""

from __future__ import annotations

import itertools
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import ORDER
from dataflex.core.registry import provided, register_order
from dataflex.discovery.component_classes import find
from dataflex.discovery.construct import construct
from dataflex.interfaces.order import Order
from dataflex.planning.answers import checked_permutation
from dataflex_selectors.orders.segment import share_of
from dataflex_selectors.orders.stair import around_borders
from golden_numbers import golden_cases

ORDERS = [point.name for point in provided(ORDER)]
PATTERNS = ("sorting", "folding", "zigzag", "segment", "stair", "saw")
CASES = golden_cases("ordering")
SCORES = {
    "random": lambda g, n: g.normal(size=n),
    "ties": lambda g, n: g.integers(0, 3, n).astype(np.float64),
    "all equal": lambda g, n: np.full(n, 1.5),
    "infinite": lambda g, n: g.choice([np.inf, -np.inf, 1.0, 2.0], n),
    "some without a score": lambda g, n: np.where(g.random(n) < 0.4, np.nan, g.integers(0, 9, n)),
    "none with a score": lambda g, n: np.full(n, np.nan),
}
WAYS = {  # parameters that change the way through the code
    name: [{}, {"window": 3}, {"window": 5000, "ascending": False}] for name in PATTERNS
} | {
    "folding": [{}, {"layers": 1}, {"layers": 2000, "window": 2}],
    "zigzag": [{}, {"layers": 1}, {"layers": 2000, "window": 2}],
    "stair": [{}, {"sections": 1}, {"sections": 1000, "ratio": 0.5, "layers": 7}, {"ratio": 0}],
    "saw": [{}, {"sections": 1}, {"sections": 4, "ratio": 0.4, "layers": 3, "window": 4}],
    "segment": [{}, {"front": 0, "back": 0}, {"front": 0.5, "back": 0.5}, {"front": 0.3, "back": 0.4, "ends": "same"}],
    "shuffle": [{}],
    "pacing": [{}, {"competence": "linear", "until_step": 3}],
    "length": [{}, {"window": 1}, {"window": 10, "batch": 4}, {"window": 10**9, "batch": 9}],
}
ALL_WAYS = [pytest.param(name, params, id=f"{name} {params}") for name in ORDERS for params in WAYS[name]]


def context(update=0, step=10, total=100, batch=8):
    return UpdateContext(update, 9, step, total, 1e-3, None, device_batch=batch)


def made(name, seed=7, **params):
    order = construct(find(ORDER, name), params, {})
    order.bind(name, seed)
    return order


def arranged(name, scores, update=0, **params):
    return checked_permutation(made(name, **params).arrange(scores, context=context(update)), len(scores), name)


def test_there_are_orders_and_each_of_the_authors_patterns_is_compared():
    assert set(ORDERS) == set(WAYS)
    assert len(CASES) == 108
    assert {case["pattern"] for case in CASES} == set(PATTERNS) - {"segment"}  # which draws


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['pattern']} {len(c['scores'])} {c['params']}")
def test_the_rows_are_in_the_order_of_the_authors_program(case):
    assert arranged(case["pattern"], np.array(case["scores"]), **case["params"]).tolist() == case["order"]


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize(("name", "params"), ALL_WAYS)
def test_every_row_comes_once_rows_without_a_score_last_and_the_scores_stay_as_they_were(name, params, kind):
    generator = np.random.default_rng(1)
    for size in (0, 1, 2, 3, 17, 1000):
        scores = SCORES[kind](generator, size)
        before = scores.copy()
        found = arranged(name, scores, **params)
        np.testing.assert_array_equal(scores, before)
        if find(ORDER, name).needs_scores:
            without = np.flatnonzero(np.isnan(scores))
            assert found[size - len(without) :].tolist() == without.tolist()


@pytest.mark.parametrize(("name", "params"), ALL_WAYS)
def test_the_same_update_repeats_an_order_on_any_rank_and_another_draws_anew_exactly_if_it_draws(name, params):
    scores = np.random.default_rng(2).normal(size=200)
    one, again, later = (arranged(name, scores, update, **params).tolist() for update in (3, 3, 4))
    other_seed = made(name, seed=8, **params).arrange(scores, context=context(3)).tolist()
    draws = name not in PATTERNS or name == "segment" or params.get("window", 0) > 1
    assert one == again
    assert (one != later) == (one != other_seed) == draws


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_says_what_scores_it_takes_and_over_what_it_makes_sense(name):
    cls = find(ORDER, name)
    assert issubclass(cls, Order)
    assert cls.needs_scores == (name != "shuffle")
    assert cls.by == {"length": "length"}.get(name)
    assert cls.over == {"pacing": "run"}.get(name)
    if name != "pacing":
        assert made(name).share(context()) == 1.0


def test_rows_without_a_score_are_said_once(caplog):
    order = made("sorting")
    with caplog.at_level(logging.WARNING):
        for update in range(3):
            order.arrange(np.array([1.0, np.nan, 0.0]), context=context(update))
    (record,) = [r for r in caplog.records if "have no score" in r.getMessage()]
    assert "order sorting: 1 of 3 rows have no score (NaN)" in record.getMessage()


def test_infinite_scores_are_numbers_like_others():
    scores = np.array([0.0, np.inf, np.nan, -np.inf, 1.0, np.inf])
    assert arranged("sorting", scores).tolist() == [3, 0, 4, 1, 5, 2]
    assert arranged("sorting", scores, ascending=False).tolist() == [1, 5, 4, 0, 3, 2]


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("window", [2, 5, 33])
def test_the_jitter_moves_rows_inside_of_their_window_alone(name, window):
    scores = np.random.default_rng(5).permutation(100).astype(np.float64)
    plain, moved = arranged(name, scores), arranged(name, scores, window=window)
    for start in range(0, 100, window):
        assert sorted(moved[start : start + window]) == sorted(plain[start : start + window])
    assert (plain != moved).any()
    assert arranged(name, scores, window=1).tolist() == arranged(name, scores, window=0).tolist()


def folded_by_hand(rows, layers, turning):
    found = []
    for layer in range(layers):
        sweep = [row for place, row in enumerate(rows) if place % layers == layer]
        found += reversed(sweep) if turning and layer % 2 else sweep
    return found


@pytest.mark.parametrize("name", ["stair", "saw"])
def test_parts_around_borders_that_meet_are_cut_where_the_one_before_ends(name):
    """The authors' inputs have none that meet; a row at a time, by the rule of their program."""
    generator = np.random.default_rng(0)
    for size, sections, ratio, layers in itertools.product((1, 2, 10, 31), (2, 3, 5, 40), (0.1, 0.25, 0.5), (2, 3)):
        scores = generator.permutation(size).astype(np.float64)
        rows, found, width = np.argsort(scores).tolist(), [], round(size * ratio)
        for number in range(1, sections):
            border = round(size * number / sections)
            start, end = max(len(found), border - width), min(size, border + width)
            found += rows[len(found) : start]
            found += folded_by_hand(rows[start:end], layers, name == "saw")
        found += rows[len(found) :]
        assert arranged(name, scores, sections=sections, ratio=ratio, layers=layers).tolist() == found


def test_no_row_is_around_two_borders():
    parts = [range(p.start, p.stop) for p in around_borders(100, 7, 0.3)]
    places = [place for part in parts for place in part]
    assert len(places) == len(set(places))
    assert list(around_borders(100, 7, 0.001)) == []


@pytest.mark.parametrize(
    ("params", "front", "back"),
    [
        ({}, range(10), range(90, 100)),
        ({"ascending": False}, range(90, 100), range(10)),
        ({"front": 0.29, "back": 0.055}, range(29), range(95, 100)),
        ({"front": 0, "back": 1}, [], range(100)),
        ({"front": 0.2, "back": 0.1, "ends": "same"}, range(30), range(30)),
        ({"front": 0.2, "back": 0.1, "ends": "same", "ascending": False}, range(70, 100), range(70, 100)),
    ],
)
def test_a_segment_takes_its_ends_from_the_scores_and_the_middle_at_random(params, front, back):
    found = arranged("segment", np.arange(100.0), **params)
    first = share_of(100, params.get("front", 0.1))
    last = 100 - share_of(100, params.get("back", 0.1))
    assert set(found[:first]) <= set(front)
    assert set(found[last:]) <= set(back)
    assert set(found[first:last]) == set(range(100)) - set(found[:first]) - set(found[last:])
    if params.get("ends") != "same":
        assert (set(found[:first]), set(found[last:])) == (set(front), set(back))
    else:
        assert {*found[:first], *found[last:]} == set(front)
    assert found[first:last].tolist() != sorted(found[first:last].tolist()) or last - first < 2


def test_a_share_of_rows_is_that_of_the_decimal_number():
    assert [share_of(100, share) for share in (0.29, 0.57, 0.999, 1.0, 1e-9)] == [29, 57, 99, 100, 0]


def test_both_ends_of_a_segment_from_one_side_are_drawn_from_both_shares():
    """Otherwise the very lowest rows would always come first, and the others of that end always last."""
    firsts = [set(arranged("segment", np.arange(40.0), u, front=0.25, back=0.25, ends="same")[:10]) for u in range(9)]
    assert set().union(*firsts) == set(range(20))


@pytest.mark.parametrize(("name", "power"), [("sqrt", 2), ("linear", 1)])
def test_pacing_grows_from_its_start_to_all_rows_as_published(name, power):
    order = made("pacing", competence=name, start=0.04, until_step=50)
    for step in (0, 1, 7, 25, 49, 50, 99):
        published = min(1.0, (step * (1 - 0.04**power) / 50 + 0.04**power) ** (1 / power))
        assert order.share(context(step=step)) == pytest.approx(published, abs=1e-15)
    assert order.share(context(step=0)) == 0.04
    assert made("pacing", competence=name).share(context(step=99, total=100)) < 1.0
    assert made("pacing", competence=name).share(context(step=100, total=100)) == 1.0
    assert made("pacing", competence=name, start=1e-300).share(context(step=0)) == 1e-300


def padding(order, lengths, batch):
    """Tokens that are no row's, for each token that is: every batch is as wide as its longest row."""
    batches = lengths[order][: len(order) // batch * batch].reshape(-1, batch)
    return float((batches.max(axis=1, keepdims=True) - batches).sum() / batches.sum())


@pytest.mark.parametrize("batch", [4, 8, 32])
def test_rows_of_similar_length_need_a_tenth_of_the_padding_of_random_ones(batch):
    lengths = np.exp(np.random.default_rng(0).normal(5.5, 1.0, 20_000)).round() + 1  # 5 to 10,000 tokens
    grouped = made("length").arrange(lengths, context=context(batch=batch))
    random = made("shuffle").arrange(lengths, context=context(batch=batch))
    assert padding(random, lengths, batch) > 1.15
    assert padding(grouped, lengths, batch) < 0.1 * padding(random, lengths, batch)
    unsorted = made("length", window=batch).arrange(lengths, context=context(batch=batch))
    assert padding(unsorted, lengths, batch) > 1.15


def test_rows_of_similar_length_are_no_curriculum():
    """Neither the mean length nor the share of long batches drifts over the stretch, or over a window."""
    lengths = np.exp(np.random.default_rng(0).normal(5.5, 1.0, 32_000)).round() + 1
    widths = lengths[made("length").arrange(lengths, context=context())].reshape(-1, 8).mean(axis=1)
    eighths = widths.reshape(8, -1).mean(axis=1)
    assert abs(np.corrcoef(np.arange(len(widths)), widths)[0, 1]) < 0.05
    assert eighths.max() / eighths.min() < 1.25
    assert abs(np.corrcoef(widths[:-1], widths[1:])[0, 1]) < 0.05


@pytest.mark.parametrize("size", [5, 1000, 1003])
def test_batches_of_similar_length_start_where_those_of_the_device_do(size):
    """Were they moved by a row, each batch of the device would hold rows of two."""
    lengths = np.random.default_rng(4).integers(1, 4000, size).astype(np.float64)
    found = lengths[arranged("length", lengths, window=10**6)]
    whole = size // 8 * 8
    batches = found[:whole].reshape(-1, 8)
    edges = sorted((batch.min(), batch.max()) for batch in batches)
    assert all(left[1] <= right[0] for left, right in itertools.pairwise(edges))
    assert (found[whole:] >= found[:whole].max(initial=0)).all()


REFUSED = [
    ("sorting", {"window": -1}, "window of the sorting order: found -1, allowed: a whole number of at least 0"),
    ("sorting", {"window": 2.5}, "window of the sorting order: found 2.5"),
    ("saw", {"ascending": "yes"}, "ascending of the saw order: found 'yes', allowed: true, false"),
    ("folding", {"layers": 0}, "layers of the folding order: found 0, allowed: a whole number of at least 1"),
    ("zigzag", {"layers": True}, "layers of the zigzag order: found True"),
    ("stair", {"ratio": 0.51}, "ratio of the stair order: found 0.51, allowed: a number from 0 to 0.5"),
    ("saw", {"ratio": -0.1}, "ratio of the saw order: found -0.1, allowed: a number from 0 to 0.5"),
    ("saw", {"sections": 0}, "sections of the saw order: found 0, allowed: a whole number of at least 1"),
    ("stair", {"sections": 1001}, "sections of the stair order: found 1001, allowed: a whole number from 1 to 1000"),
    ("segment", {"front": 0.6, "back": 0.5}, "front and back of the segment order: found 0.6 and 0.5, allowed: at"),
    ("segment", {"front": 1.1}, "front of the segment order: found 1.1, allowed: a number from 0 to 1"),
    ("segment", {"ends": "both"}, "ends of the segment order: found 'both', allowed: opposite, same"),
    ("pacing", {"competence": "root"}, "competence of the pacing order: found 'root', allowed: sqrt, linear"),
    ("pacing", {"start": 0}, "start of the pacing order: found 0, allowed: a number above 0 and at most 1"),
    (
        "pacing",
        {"until_step": 0},
        "until_step of the pacing order: found 0, allowed: a whole number of at least 1, or null",
    ),
    ("length", {"window": 0}, "window of the length order: found 0, allowed: a whole number of at least 1"),
    ("length", {"batch": 0}, "batch of the length order: found 0, allowed: a whole number of at least 1, or null"),
]


@pytest.mark.parametrize(("name", "params", "message"), REFUSED, ids=[f"{n} {p}" for n, p, _ in REFUSED])
def test_a_parameter_out_of_its_range_is_refused_with_what_is_allowed(name, params, message):
    with pytest.raises(ConfigError) as caught:
        made(name, **params)
    assert message in str(caught.value)


def test_ends_of_a_segment_that_are_all_rows_as_decimals_are_not_refused():
    """0.7 + 0.2 + 0.1 is not 1 in floats."""
    assert made("segment", front=0.9, back=0.1)
    assert made("segment", front=0.71, back=0.29)


def test_the_order_of_the_guide_to_plugins_does_what_it_says():
    guide = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"^```python\n(.*?)^```", guide, re.M | re.S) if "EndsFirst" in block]
    names = {"__name__": "guide"}
    exec(block, names)
    scores = np.array([5.0, np.nan, 1.0, 4.0, 2.0, 3.0])
    order = names["EndsFirst"]()
    assert checked_permutation(order.arrange(scores, context=context()), 6, "o").tolist() == [2, 0, 4, 3, 5, 1]
    for size in range(6):
        checked_permutation(order.arrange(np.zeros(size), context=context()), size, "o")


def test_an_order_of_a_third_party_needs_one_method():
    @register_order("from_the_end")
    class FromTheEnd(Order):
        """Rows backwards."""

        def arrange(self, scores, *, context):
            return np.arange(len(scores))[::-1]

    cls = find(ORDER, "from_the_end")
    assert cls is FromTheEnd
    assert checked_permutation(cls().arrange(np.zeros(3), context=context()), 3, "order").tolist() == [2, 1, 0]
    assert cls().share(context()) == 1.0
    assert (cls.needs_scores, cls.by, cls.over) == (True, None, None)
