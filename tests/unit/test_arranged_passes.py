"""Passes that an order arranges: what a pool passes over, what a checkpoint holds, and rows without replacement."""

from __future__ import annotations

import numpy as np
import pytest
from dataflex.core.context import UpdateContext
from dataflex.interfaces.order import Order
from dataflex.planning import passes as passes_module
from dataflex.planning.ordering import ArrangedPasses
from dataflex.planning.passes import Passes

SIZE, FIRST = 40, 100
VALUES = np.random.default_rng(3).permutation(SIZE).astype(np.float64)


class Lowest(Order):
    """The lowest score first."""

    def arrange(self, scores, *, context):
        return np.argsort(scores, kind="stable").astype(np.int32)


class LowestQuarter(Lowest):
    """The lowest score first, of a quarter of the rows."""

    over = "run"

    def share(self, context):
        return 0.25


def made(cls=Lowest, changes=False):
    order = cls()
    order.bind("lowest", 1)
    return ArrangedPasses(order, FIRST, SIZE, changes=changes)


def taken(passes, count, pool, update, decides=True, asked=None):
    def scores(rows):
        if asked is not None:
            asked.append(rows)
        return VALUES if rows is None else VALUES[rows - FIRST]

    context = UpdateContext(update, 100, update, 100, 1e-3, None)
    return (passes.take(count, pool, context, scores, "order 'lowest'", decides=decides) - FIRST).tolist()


def pools(seed):
    rng = np.random.default_rng(seed)
    return [None, *(rng.random(SIZE) < share for share in (0.5, 0.3, 0.8))]


def walked(counts, masks):
    """Returns what a slow walk takes: each unseen row of the pool once, the lowest first, in arrangements."""
    seen, left, found = set(), [], []
    for count, mask in zip(counts, masks, strict=True):
        own = set(range(SIZE) if mask is None else np.flatnonzero(mask).tolist())
        rows = []
        while len(rows) < count:
            if not left:
                if not own - seen:
                    seen = set()
                left = sorted(own - seen, key=lambda row: VALUES[row])
            row, *left = left
            if row in own:
                seen.add(row)
                rows.append(row)
        found.append(rows)
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("changes", [False, True])
def test_a_pool_that_changes_is_walked_as_a_slow_walk_does_and_from_any_checkpoint(seed, changes):
    counts = np.random.default_rng(seed).integers(0, 30, 12).tolist()
    masks = [pools(seed)[number % 4] for number in range(12)]
    passes, found = made(changes=changes), []
    for number, (count, mask) in enumerate(zip(counts, masks, strict=True)):
        resumed = made(changes=changes)
        resumed.load_state_dict(passes.state_dict())
        found.append(taken(passes, count, mask, number))
        assert taken(resumed, count, mask, number) == found[-1]
    if not changes:
        assert found == walked(counts, masks)


def test_scores_that_never_change_leave_two_bits_a_row_in_a_checkpoint_whatever_the_pool_does():
    passes = made()
    for number, mask in enumerate(pools(1)):
        taken(passes, 7, mask, number)
    state = passes.state_dict()
    assert state["left"] is None
    assert sum(value.nbytes for value in state.values() if isinstance(value, np.ndarray)) == 2 * SIZE / 8


def test_scores_of_a_whole_source_are_not_copied_and_asked_for_once_a_pass():
    passes, asked = made(), []
    for number in range(8):
        taken(passes, SIZE // 4, None, number, asked=asked)
    assert asked == [None, None]


def test_rows_come_at_random_before_the_order_takes_part():
    passes = made()
    first = taken(passes, 10, None, 0, decides=False)
    rest = taken(passes, SIZE - 10, None, 1)
    assert first != sorted(first, key=lambda row: VALUES[row])
    assert sorted(first + rest) == list(range(SIZE))
    assert rest == sorted(rest, key=lambda row: VALUES[row])


@pytest.mark.parametrize("pool", [None, np.arange(SIZE) % 2 == 0])
def test_a_share_of_the_rows_is_that_with_the_lowest_scores(pool):
    own = [row for row in range(SIZE) if pool is None or pool[row]]
    lowest = sorted(own, key=lambda row: VALUES[row])[: len(own) // 4]
    assert taken(made(LowestQuarter, changes=True), 2 * len(lowest), pool, 0) == 2 * lowest


def test_rows_of_a_small_pool_are_looked_for_in_pieces(monkeypatch):
    pool = np.arange(5000) % 500 == 3
    whole = Passes(5000, 1).take(25, pool)
    looked = []
    monkeypatch.setattr(passes_module, "_AT_MOST", 64)
    monkeypatch.setattr(passes_module, "_AT_LEAST", 8)
    passes = Passes(5000, 1)
    take = passes._order.take
    monkeypatch.setattr(passes._order, "take", lambda start, count: looked.append(count) or take(start, count))
    assert passes.take(25, pool).tolist() == whole.tolist()
    assert max(looked) == 64
