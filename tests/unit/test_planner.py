"""The planner: which rows a segment trains on, and in which order, for every composition of its stages."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, Part, RunSpec
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ComponentError
from dataflex.core.kinds import MIXER, ORDER, SELECTOR
from dataflex.core.schedule import Schedule
from dataflex.interfaces.mixer import Mixer
from dataflex.interfaces.order import Order
from dataflex.interfaces.selector import Selection, Selector
from dataflex.planning.mixture import MixtureManager
from dataflex.planning.planner import Planner
from dataflex.planning.stages import Stages

SIZES = (37, 23)
ROWS = sum(SIZES)
VALUES = np.random.default_rng(1).permutation(ROWS).astype(float)
"""The score of each row; no two are alike."""


class Lowest(Selector):
    """Chooses the rows with the lowest values, and says them as scores."""

    def select(self, model, step_id, num_samples, **kwargs):
        values = np.array([self.dataset[i] for i in range(len(self.dataset))])
        chosen = np.argsort(values)[:num_samples]
        return Selection(chosen, values[chosen])


class Shares(Mixer):
    def mix(self, model, step_id, **kwargs):
        return np.array([0.25, 0.75]) if kwargs["context"].update % 2 else np.array([0.6, 0.4])


class Ascending(Order):
    def arrange(self, scores, *, context):
        return np.argsort(scores, kind="stable")


class Values:
    """The scores of the run."""

    def __init__(self, rows=None):
        self.rows = np.arange(ROWS) if rows is None else rows

    def of(self, name, rows_S=None, **_):
        return VALUES[self.rows if rows_S is None else self.rows[rows_S]]

    def within(self, rows_S):
        return Values(self.rows[rows_S])

    def __len__(self):
        return len(self.rows)


def agreed(digest, who):
    """A single rank agrees with itself."""


def part(kind, name, **more) -> Part:
    return Part(ComponentSpec(kind, name, name), **more)


class Run:
    """A run of segments of 5 steps of 4 rows, without a trainer."""

    def __init__(self, *parts: Part, seed: int = 3, rows: int = 20) -> None:
        self.spec = RunSpec(
            DataflexArguments(train_type="dynamic", **{p.component.kind.name: {} for p in parts}), parts=parts
        )
        mixes = any(p.component.kind is MIXER for p in parts)
        self.mixture = MixtureManager("ab", SIZES, [0.5, 0.5], seed) if mixes else None
        self.made: list[tuple[str, Any, Any]] = []
        self.stages = Stages(self.spec, ROWS, self.mixture, self.make, seed)
        self.rows, self.step, self.schedule = rows, 0, Schedule(30, 5, 5, None, 30, 30)

    def make(self, part, rows, source):
        first = 0 if source is None else (0, SIZES[0])[source]
        size = ROWS if source is None else SIZES[source]
        own = VALUES[first : first + size] if rows is None else VALUES[rows]
        cls = {SELECTOR: Lowest, MIXER: Shares, ORDER: Ascending}[part.component.kind]
        self.made.append((part.component.name, rows, source))
        made = {
            Lowest: lambda: Lowest(own, None, None, ""),
            Shares: lambda: Shares(self.mixture),
            Ascending: Ascending,
        }[cls]()
        made.bind(part.component.name, 3)
        return made

    def plan(self):
        segment = self.schedule.segment_at(self.step)
        context = UpdateContext(segment.update or 0, 5, self.step, 30, 1e-3, None, scores=Values())
        plan = Planner(self.stages, segment, context, None, lambda verb, name: None, agreed).plan(self.rows, 0)
        self.step = segment.stop
        return plan


PARTS = {
    "filter": part(SELECTOR, "keeps", keep=0.5),
    "mix": part(MIXER, "shares"),
    "select": part(SELECTOR, "lowest"),
    "order": part(ORDER, "ascending", by="loss", over="stretch"),
}
COMBINATIONS = [names for n in range(1, 5) for names in itertools.combinations(PARTS, n)]


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_each_stage_does_its_part_in_every_combination(names):
    run = Run(*(PARTS[name] for name in names))
    warm = run.plan()
    assert not warm.decisions
    assert len(warm.chosen.rows) == run.rows
    for update in range(4):
        plan = run.plan()
        rows = plan.chosen.rows
        assert len(rows) == run.rows
        assert [decision.verb for decision in plan.decisions] == list(names)
        pool = np.arange(ROWS)
        if "filter" in names:
            pool = np.flatnonzero(VALUES < ROWS // 2)
            assert run.stages.pool.mask.sum() == ROWS // 2, "the filter's share"
            assert np.isin(rows, pool).all()
        if "mix" in names:
            share = 0.25 if update % 2 else 0.6
            assert np.sum(rows < SIZES[0]) == round(share * run.rows), "the quota"
        if "select" in names:
            for rest in [pool] if "mix" not in names else [pool[pool < SIZES[0]], pool[pool >= SIZES[0]]]:
                own = rows[np.isin(rows, rest)]
                counts = np.unique(own, return_counts=True)[1]
                assert len(own) < len(rest) or counts.min() >= 1
                lowest = rest[np.argsort(VALUES[rest])][: len(own) % len(rest)]
                passes = len(own) // len(rest)
                assert sorted(own) == sorted([*np.tile(rest, passes), *lowest]), "the rows of the selector"
        if "order" in names:
            assert (np.diff(VALUES[rows]) >= 0).all(), "the pattern"


OVER = [(names, "stretch") for names in COMBINATIONS]
OVER += [(names, "run") for names in COMBINATIONS if "order" in names and "select" not in names]


@pytest.mark.parametrize(("names", "over"), OVER, ids=str)
def test_a_run_goes_on_from_its_state(names, over):
    parts = [PARTS[name] for name in names if name != "order"]
    parts += [part(ORDER, "ascending", by="loss", over=over)] if "order" in names else []
    whole, again = Run(*parts), Run(*parts)
    for _ in range(3):
        whole.plan()
    again.stages.load_state_dict(whole.stages.state_dict())
    again.step = whole.step
    for _ in range(2):
        one, other = whole.plan(), again.plan()
        np.testing.assert_array_equal(one.chosen.rows, other.chosen.rows)
        assert one.decisions == () or [d.verb for d in one.decisions] == [d.verb for d in other.decisions]


@pytest.mark.parametrize("by", ["loss", "length"])
@pytest.mark.parametrize("mixed", [False, True])
def test_an_order_over_the_run_has_each_row_once_before_any_comes_again(by, mixed):
    parts = [part(ORDER, "ascending", by=by, over="run")] + ([PARTS["mix"]] if mixed else [])
    run = Run(*parts)
    rows = np.concatenate([run.plan().chosen.rows for _ in range(6)])
    for first, size in zip((0, SIZES[0]) if mixed else (0,), SIZES if mixed else (ROWS,), strict=True):
        own = rows[(rows >= first) & (rows < first + size)]
        for start in range(0, len(own), size):
            passed = own[start : start + size]
            assert len(set(passed)) == len(passed)
        warm = np.sum((rows[:20] >= first) & (rows[:20] < first + size))
        rest = own[warm:size]
        assert (np.diff(VALUES[rest]) > 0).all(), "the rest of the first pass is arranged as a whole"


def test_what_a_part_decided_stands_until_it_takes_part_again():
    run = Run(
        part(SELECTOR, "keeps", keep=0.5, every=2),
        part(SELECTOR, "lowest", every=3),
        part(ORDER, "ascending", by="loss", over="stretch", start=15),
    )
    run.plan()
    plans = [run.plan() for _ in range(5)]
    assert [[d.verb for d in plan.decisions] for plan in plans] == [
        ["filter", "select"], [], ["filter", "order"], ["select", "order"], ["filter", "order"],
    ]  # fmt: skip
    assert set(plans[1].chosen.rows) == set(plans[0].chosen.rows), "the chosen rows stand"
    assert plans[1].chosen.rows.tolist() != plans[0].chosen.rows.tolist(), "in another order"


def test_a_second_filter_is_shown_what_the_first_keeps():
    run = Run(part(SELECTOR, "keeps", keep=0.5), part(SELECTOR, "keeps", keep=0.4))
    run.plan()
    plan = run.plan()
    assert [decision.rows for decision in plan.decisions] == [30, 12]
    assert set(plan.chosen.rows) == set(np.flatnonzero(VALUES < 12))
    assert np.unique(plan.chosen.rows, return_counts=True)[1].max() <= 3, "20 rows of 12, from within a pass"


def test_a_source_of_which_filters_keep_nothing_is_an_error():
    values = np.concatenate([np.arange(SIZES[0]), 100.0 + np.arange(SIZES[1])])
    run = Run(part(SELECTOR, "keeps", keep=0.3), PARTS["mix"])
    before = VALUES.copy()
    try:
        VALUES[:] = values
        run.plan()
        with pytest.raises(ComponentError, match="rows of b, of which the filters have kept none"):
            run.plan()
    finally:
        VALUES[:] = before


def test_an_order_by_the_selectors_scores_needs_a_selector_that_gives_some():
    order = part(ORDER, "ascending", by="selector", over="stretch")
    run = Run(PARTS["select"], order)
    run.plan()
    rows = run.plan().chosen.rows
    assert (np.diff(VALUES[rows]) > 0).all()
    run.stages.selectors[0].component.select = lambda model, step_id, num_samples, **_: range(num_samples)
    with pytest.raises(ComponentError, match="by: loss, or a selector that gives rows scores"):
        run.plan()


def test_a_filter_keeps_each_row_once_whatever_its_class_says():
    run = Run(PARTS["filter"])
    run.plan()
    filtering = run.stages.filters[0].component
    filtering.replacement = True
    filtering.select = lambda model, step_id, num_samples, **_: [0] * num_samples
    with pytest.raises(ComponentError, match="rows more than once"):
        run.plan()


def test_a_checkpoint_holds_what_filters_keep_as_bits_and_a_choice_only_where_it_may_stand():
    run = Run(PARTS["filter"], PARTS["select"], PARTS["mix"])
    for _ in range(2):
        run.plan()
    state = run.stages.state_dict()
    assert [each["standing"] for each in state["filters"] + state["selectors"]] == [None, None, None]
    assert [each["rows"].dtype for each in state["selectors"]] == [np.uint8, np.uint8]
    assert sum(np.unpackbits(each["rows"]).sum() for each in state["selectors"]) == ROWS // 2
    standing = Run(part(SELECTOR, "lowest", every=2))
    for _ in range(2):
        standing.plan()
    assert len(standing.stages.state_dict()["selectors"][0]["standing"][0]) == standing.rows


def test_a_source_that_is_left_without_rows_is_resumed(monkeypatch):
    monkeypatch.setattr(f"{__name__}.VALUES", np.concatenate([np.arange(SIZES[0]), 100.0 + np.arange(SIZES[1])]))
    monkeypatch.setattr(Shares, "mix", lambda self, model, step_id, **_: np.array([1.0, 0.0]))
    parts = part(SELECTOR, "keeps", keep=0.3), PARTS["mix"], PARTS["select"]
    whole, again = Run(*parts), Run(*parts)
    for _ in range(2):
        whole.plan()
    assert [placed.size for placed in whole.stages.selectors] == [18, 0]
    again.stages.load_state_dict(whole.stages.state_dict())
    again.step = whole.step
    np.testing.assert_array_equal(whole.plan().chosen.rows, again.plan().chosen.rows)


def test_a_component_whose_state_cannot_be_kept_or_given_back_is_named(monkeypatch):
    run = Run(PARTS["filter"], PARTS["mix"])
    monkeypatch.setattr(Shares, "state_dict", lambda self: {"made": object()})
    with pytest.raises(ComponentError, match=r"mixer 'shares'.*could not be resumed from"):
        run.stages.state_dict()
    monkeypatch.undo()
    state = run.stages.state_dict()
    monkeypatch.setattr(Lowest, "load_state_dict", lambda self, state: state["gone"])
    with pytest.raises(ComponentError, match="selector 'keeps' raised KeyError"):
        run.stages.load_state_dict(state)


def test_weights_of_rows_travel_with_them_and_are_for_classes_that_say_so():
    run = Run(PARTS["select"], PARTS["order"])
    run.plan()
    weighing = run.stages.selectors[0].component

    def select(model, step_id, num_samples, **_):
        rows = np.arange(num_samples)
        return Selection(rows, None, 1.0 + VALUES[rows])

    weighing.select = select
    with pytest.raises(ComponentError, match="weighs = True"):
        run.plan()
    run.stages.selectors[0].component.__class__ = type("Weighing", (Lowest,), {"weighs": True})
    run.step = 5
    chosen = run.plan().chosen
    np.testing.assert_array_equal(chosen.weights, 1.0 + VALUES[chosen.rows])


def test_hooks_hear_of_each_part_before_it_decides():
    run = Run(*PARTS.values())
    heard: list[tuple[str, str]] = []
    run.plan()
    segment = run.schedule.segment_at(5)
    context = UpdateContext(0, 5, 5, 30, 1e-3, None, scores=Values())
    before = lambda verb, name: heard.append((verb, name))  # noqa: E731
    Planner(run.stages, segment, context, SimpleNamespace(), before, agreed).plan(20, 0)
    assert heard == [("filter", "keeps"), ("mix", "shares"), ("select", "lowest"), ("order", "ascending")]
