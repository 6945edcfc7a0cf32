"""The sort behind the orders: that of NumPy, ties by their place, whatever the scores are made of."""

from __future__ import annotations

import numpy as np
import pytest
from dataflex.core import stable_sort
from dataflex.core.stable_sort import position_type, stable_order

SCORES = {
    "all 64 bits": lambda g, n: g.normal(size=n),
    "32 bits": lambda g, n: g.normal(size=n).astype(np.float32).astype(np.float64),
    "few numbers": lambda g, n: g.integers(-3, 4, n).astype(np.float64),
    "lengths": lambda g, n: g.integers(1, 9000, n).astype(np.float64),
    "all equal": lambda g, n: np.full(n, -2.5),
    "no score": lambda g, n: np.full(n, np.nan),
    "some without": lambda g, n: np.where(g.random(n) < 0.3, np.nan, g.normal(size=n)),
    "one number, some without": lambda g, n: np.where(g.random(n) < 0.3, np.nan, 7.0),
    "infinite": lambda g, n: g.choice([np.inf, -np.inf, 0.0, -0.0, 1e308, -1e308, 5e-324, -5e-324, np.nan], n),
    "float16": lambda g, n: g.normal(size=n).astype(np.float16),
    "whole numbers": lambda g, n: g.integers(-9, 9, n),
}


def by_numpy(scores, descending):
    """The slow way: NumPy's stable argsort of those with a score, the others behind."""
    values = np.asarray(scores, dtype=np.float64)
    there = np.flatnonzero(~np.isnan(values))
    keys = -values[there] if descending else values[there]
    return [*there[np.argsort(keys, kind="stable")], *np.flatnonzero(np.isnan(values))]


@pytest.mark.parametrize("piece", [4, 1 << 18])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("kind", SCORES)
def test_positions_are_those_of_numpys_stable_sort_of_any_size_in_any_pieces(monkeypatch, kind, descending, piece):
    monkeypatch.setattr(stable_sort, "_PIECE", piece)
    generator = np.random.default_rng(3)
    for size in (0, 1, 2, 3, 5, 8, 9, 64, 100, 1000):
        for _ in range(3):
            scores = SCORES[kind](generator, size)
            before = scores.copy()
            found = stable_order(scores, descending)
            assert found.tolist() == by_numpy(scores, descending)
            np.testing.assert_array_equal(scores, before)


def test_scores_that_differ_by_the_last_bit_alone_are_told_apart_among_many():
    """Two rounds: beside the position of a row no 64 bits of a score have room."""
    size = 5000
    scores = np.nextafter(1.0, 2.0) + np.arange(size)[::-1] * np.finfo(np.float64).eps
    scores[::7] *= -1e300
    assert stable_order(scores).tolist() == np.argsort(scores, kind="stable").tolist()


def test_positions_are_kept_in_32_bits_as_far_as_they_fit():
    assert stable_order(np.zeros(3)).dtype == stable_order(np.arange(3.0)).dtype == np.int32
    assert position_type(2**31) == np.int32
    assert position_type(2**31 + 1) == np.int64


def test_scores_of_32_bits_and_either_sign_leave_room_for_a_position_among_100_million():
    """One round of sorting is enough for them, and no more memory than a sort of integers takes."""
    scores = np.random.default_rng(0).normal(size=9999).astype(np.float32).astype(np.float64)
    scores[:4] = [np.inf, -np.inf, np.nan, 0.0]
    assert 32 < stable_sort._Keys.of(scores, False).bits <= 64 - (10**8).bit_length()
