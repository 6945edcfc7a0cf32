import math
from dataclasses import replace
from itertools import pairwise

import pytest
from dataflex.core.errors import ConfigError
from dataflex.core.schedule import Segment, Steps, takes_part
from hypothesis import given
from hypothesis import strategies as st


def schedule(**changes):
    keys = {
        "warmup_step": 2,
        "update_step": 3,
        "update_times": 2,
        "train_step": 0,
        "epochs": 3.0,
    }
    return Steps(**(keys | changes)).plan(10)


def segments(plan):
    found, step = [], 0
    while step < plan.total:
        found.append(plan.segment_at(step))
        step = found[-1].stop
    return found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, [(0, 2, None), (2, 5, 0), (5, 8, 1)], id="the total is the warm-up plus the updates"),
        pytest.param({"warmup_step": 0}, [(0, 3, 0), (3, 6, 1)], id="without a warm-up it starts with an update"),
        pytest.param(
            {"update_times": -1, "train_step": 9},
            [(0, 2, None), (2, 5, 0), (5, 8, 1), (8, 9, 2)],
            id="minus one updates until train_step",
        ),
        pytest.param({"train_step": 4}, [(0, 2, None), (2, 4, 0)], id="train_step cuts the formula"),
        pytest.param({"train_step": 12}, [(0, 2, None), (2, 5, 0), (5, 12, 1)], id="train_step extends it"),
        pytest.param(
            {"warmup_step": 0, "update_step": 0, "update_times": 0, "train_step": 7},
            [(0, 7, None)],
            id="no updates are one stretch",
        ),
    ],
)
def test_a_run_is_cut_into_segments(changes, expected):
    plan = schedule(**changes)
    assert segments(plan) == [Segment(*segment) for segment in expected]
    assert plan.total == expected[-1][1]
    assert plan.updates == sum(update is not None for _, _, update in expected)


def test_minus_one_updates_until_the_epochs_are_done():
    assert schedule(update_times=-1, epochs=1.5).total == 15


def test_epochs_repeat_the_cycle_only_when_asked():
    plan = schedule(repeat=True, epochs=2.0)
    assert plan.total == 16
    assert [(s.start, s.update) for s in segments(plan)] == [(0, None), (2, 0), (5, 1), (8, None), (10, 2), (13, 3)]
    assert plan.epoch_at(8) == 1.0
    assert plan.updates == 4


def test_updates_without_steps_between_them_are_refused():
    with pytest.raises(ConfigError, match="update_step: 0 with update_times: 2; expected 1 or more"):
        schedule(update_step=0)


def test_a_step_outside_of_the_run_is_refused():
    with pytest.raises(ValueError, match="step 8 is outside of a run of 8 steps"):
        schedule().segment_at(8)


@given(
    warmup=st.integers(0, 7),
    interval=st.integers(1, 6),
    updates=st.integers(-1, 5),
    train=st.integers(0, 60),
    epochs=st.floats(0.1, 3.0),
    repeat=st.booleans(),
)
def test_segments_cover_the_run_without_gap_or_overlap(warmup, interval, updates, train, epochs, repeat):
    plan = schedule(
        warmup_step=warmup, update_step=interval, update_times=updates, train_step=train, epochs=epochs, repeat=repeat
    )
    parts = segments(plan)
    assert parts[0].start == 0
    assert parts[-1].stop == plan.total
    assert all(a.stop == b.start for a, b in pairwise(parts))
    numbers = [p.update for p in parts if p.update is not None]
    assert numbers == list(range(len(numbers)))
    assert plan.updates == len(numbers)
    assert plan.longest_segment.steps == max(p.steps for p in parts)
    for part in parts:
        assert all(plan.segment_at(step) == part for step in range(part.start, part.stop))
    if not train and updates >= 0 and warmup + interval * updates:
        cycle = warmup + interval * updates
        assert plan.total == (max(1, math.ceil(epochs * cycle)) if repeat else cycle)


@pytest.mark.parametrize("step", [0, 3, 4, 7, 8, 9])
def test_a_long_stretch_without_updates_is_planned_in_pieces(step):
    whole = Steps(warmup_step=0, update_step=0, update_times=0, train_step=10, epochs=1).plan(9)
    pieces = replace(whole, longest=4)
    assert whole.segment_at(step) == Segment(0, 10, None)
    assert pieces.segment_at(step) == Segment(step // 4 * 4, min(step // 4 * 4 + 4, 10), None)
    assert (pieces.updates, pieces.total) == (0, 10)


def test_the_warm_up_is_cut_and_updates_stay_where_they_are():
    whole = Steps(warmup_step=5, update_step=6, update_times=2, train_step=0, epochs=1).plan(9)
    pieces = replace(whole, longest=2)
    assert [pieces.segment_at(s).stop for s in (0, 2, 4)] == [2, 4, 5]
    assert all(pieces.segment_at(s) == whole.segment_at(s) for s in range(5, 17))
    assert pieces.updates == 2


def test_an_axis_takes_part_in_each_nth_update_from_its_step_on():
    turns = [(update, 2 + 3 * update) for update in range(8)]
    assert [update for update, step in turns if takes_part(update, step, 1, 0)] == list(range(8))
    assert [update for update, step in turns if takes_part(update, step, 2, 0)] == [0, 2, 4, 6]
    assert [update for update, step in turns if takes_part(update, step, 2, 8)] == [2, 4, 6]  # update 2 is at step 8
    assert [update for update, step in turns if takes_part(update, step, 2, 9)] == [4, 6]
    assert [update for update, step in turns if takes_part(update, step, 3, 24)] == []


@given(
    warmup=st.integers(0, 4),
    interval=st.integers(1, 4),
    times=st.integers(-1, 5),
    total=st.integers(0, 30),
    epochs=st.floats(0.1, 4),
    repeat=st.booleans(),
    every=st.integers(1, 7),
    start=st.integers(0, 40),
)
def test_the_first_update_of_an_axis_is_the_first_that_it_takes_part_in(
    warmup, interval, times, total, epochs, repeat, every, start
):
    plan = Steps(warmup, interval, times, total, epochs, repeat).plan(10)
    turns = [each for each in segments(plan) if each.update is not None]
    expected = next((each for each in turns if takes_part(each.update, each.start, every, start)), None)
    assert plan.first_update(every, start) == expected
