"""A mixture over 100 million rows: what a plan costs depends on the rows it plans, and a source of 10 rows is seen."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from dataflex.planning.mixture import MixtureManager, initial_proportions, largest_remainder
from dataflex.rows.views import MixedSources, PlannedRows

HUGE, TINY = 100_000_000, 10
SEGMENT = 1_000_000  # 1000 steps of 1000 rows


class Source:
    """Rows that are made when they are asked for, as a file on disk would give them."""

    def __init__(self, name: str, rows: int) -> None:
        self.name, self.rows = name, rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> dict:
        assert 0 <= row < self.rows
        return {"source": self.name, "row": row}


def manager(shares=(0.9999, 0.0001)):
    return MixtureManager(["huge", "tiny"], [HUGE, TINY], shares, seed=1)


def test_a_segment_of_a_million_rows_is_planned_in_a_second_and_200_mb():
    mixture = manager()
    started = time.process_time()  # the machine may be busy with something else
    mixture.plan(SEGMENT)
    assert time.process_time() - started < 1
    tracemalloc.start()
    try:
        rows = mixture.plan(SEGMENT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200e6
    assert len(np.unique(rows[rows < HUGE])) == (rows < HUGE).sum(), "no row of the huge source comes twice"


def test_the_state_is_a_few_numbers_and_the_plan_goes_on_from_it_at_once():
    mixture = manager()
    mixture.plan(SEGMENT)
    state = mixture.state_dict()
    assert sum(np.asarray(value).nbytes for value in state.values()) < 200
    again = manager()
    again.load_state_dict(state)
    started = time.process_time()
    rows = again.plan(1000)
    assert time.process_time() - started < 0.1
    np.testing.assert_array_equal(rows, mixture.plan(1000))


def test_a_source_of_ten_rows_is_seen_as_often_as_its_share_says():
    rows = manager().plan(SEGMENT)
    tiny = rows[rows >= HUGE] - HUGE
    assert np.bincount(tiny, minlength=TINY).tolist() == [SEGMENT // 10_000 // TINY] * TINY


@pytest.mark.parametrize("segment", [50_000, 1_000_000])
def test_drawn_by_size_ten_rows_beside_a_hundred_million_are_seen_once_per_pass(segment):
    shares_K = initial_proportions("stratified", None, [HUGE, TINY])
    owed_K, seen, first = np.zeros(2), 0, None
    for number in range((HUGE + TINY) // segment):
        counts_K = largest_remainder(shares_K, segment, owed_K)
        owed_K += shares_K * segment - counts_K
        seen += int(counts_K[1])
        first = number if first is None and seen else first
    assert seen == pytest.approx(TINY, abs=1)
    assert first * segment < 0.06 * HUGE, "the first of them comes early"


def test_rows_of_both_are_found_without_going_through_them():
    mixed = MixedSources({"huge": Source("huge", HUGE), "tiny": Source("tiny", TINY)})
    started = time.process_time()
    planned = PlannedRows(mixed, manager((0.5, 0.5)).plan(20))
    found = planned.__getitems__(list(range(20)))
    assert time.process_time() - started < 0.5
    assert sorted(row["source"] for row in found) == ["huge"] * 10 + ["tiny"] * 10
    assert sorted(row["row"] for row in found if row["source"] == "tiny") == list(range(10))
