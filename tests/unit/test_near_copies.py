"""Which rows are near an earlier one: in blocks as one by one, in float32 as in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataflex_selectors.parts import near_copies
from dataflex_selectors.parts.near_copies import cosine_above, manhattan_below, nearest_earlier, walked_apart
from dataflex_selectors.parts.sampled_clusters import centres, clustered, default_clusters, sampled_rows
from dataflex_selectors.parts.walk_rounds import ranking_turns
from hypothesis import given, settings
from hypothesis import strategies as st


def points(size, dim, seed, copies=0.5):
    """Vectors of length 1, some of them near others."""
    generator = np.random.default_rng(seed)
    found = generator.standard_normal((size, dim))
    for row in range(1, size):
        if generator.random() < copies:
            found[row] = found[generator.integers(row)] + generator.uniform(0, 0.8) * generator.standard_normal(dim)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def too_near(metric, threshold):
    """The oracle's test of two vectors in float64."""
    if metric == "cosine":
        return lambda x, y: float(x.astype(np.float64) @ y.astype(np.float64)) > threshold
    return lambda x, y: float(np.abs(x.astype(np.float64) - y.astype(np.float64)).sum()) < threshold


def by_hand(vectors, order, near, most=None, before=()):
    """The oracle: row by row, each with every taken one."""
    kept, taken = list(before), []
    for row in order:
        if most is not None and len(taken) >= most:
            break
        if not any(near(vectors[row], vectors[other]) for other in kept):
            kept.append(row)
            taken.append(int(row))
    return taken


@given(
    st.integers(0, 40), st.integers(2, 5), st.integers(0, 2**32), st.sampled_from([1, 3, 512]),
    st.sampled_from(["cosine", "manhattan"]), st.sampled_from([None, 0, 1, 7]), st.integers(0, 5),
)  # fmt: skip
@settings(max_examples=120)
def test_the_walk_takes_what_a_walk_row_by_row_takes(size, dim, seed, block, metric, most, seen):
    vectors, generator = points(size, dim, seed), np.random.default_rng(seed + 1)
    order = generator.permutation(size)
    before, order = order[:seen], order[seen:]
    threshold = generator.uniform(0.5, 0.99) if metric == "cosine" else generator.uniform(0.1, 1.0)
    near = cosine_above(threshold) if metric == "cosine" else manhattan_below(threshold)
    old = near_copies._ROWS, near_copies._OTHERS
    near_copies._ROWS, near_copies._OTHERS = block, 2 * block
    try:
        found = walked_apart(vectors, order, near, most, before)
    finally:
        near_copies._ROWS, near_copies._OTHERS = old
    assert found.tolist() == by_hand(vectors, order, too_near(metric, threshold), most, before)


@given(st.integers(1, 40), st.integers(2, 5), st.integers(0, 2**32), st.sampled_from([1, 3, 512]))
@settings(max_examples=80)
def test_the_nearest_earlier_row_is_found_in_blocks_as_among_all_pairs(size, dim, seed, block):
    vectors = points(size, dim, seed)
    old = near_copies._ROWS, near_copies._OTHERS
    near_copies._ROWS, near_copies._OTHERS = block, 2 * block
    try:
        found = nearest_earlier(vectors)
    finally:
        near_copies._ROWS, near_copies._OTHERS = old
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    expected = [max([0.0, *cosines[row, :row]]) for row in range(size)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.max() <= 1


def test_copies_are_no_nearer_than_themselves_so_a_threshold_of_one_leaves_none_out():
    vectors = np.repeat(points(3, 700, 0, copies=0), 40, axis=0)
    assert len(walked_apart(vectors, np.arange(120), cosine_above(1.0))) == 120
    assert len(walked_apart(vectors, np.arange(120), manhattan_below(0.0))) == 120
    assert walked_apart(vectors, np.arange(120), cosine_above(0.9999)).tolist() == [0, 40, 80]
    assert walked_apart(vectors, np.arange(120), manhattan_below(1e-3)).tolist() == [0, 40, 80]


def test_the_walk_reads_no_more_rows_than_it_needs():
    vectors, asked = points(5000, 3, 0, copies=0), []

    class Read:
        def __getitem__(self, rows):
            asked.extend(rows.tolist())
            return vectors[rows]

    assert len(walked_apart(Read(), np.arange(5000), cosine_above(1.0), most=10)) == 10
    assert len(asked) <= near_copies._ROWS


# --- clusters


def test_every_row_goes_to_its_nearest_centre_also_those_that_k_means_did_not_see(monkeypatch):
    vectors = points(900, 6, 3)
    label, cosine = clustered(vectors, 900, 5, np.random.default_rng(0))
    assert sampled_rows(900, 5) == 320
    sample = np.sort(np.random.default_rng(0).choice(900, 320, replace=False))
    means = centres(vectors[sample], label[sample])
    assert np.abs(np.linalg.norm(means, axis=1) - 1).max() < 1e-6
    other = vectors @ means.T
    assert (other.argmax(1) == label).mean() > 0.9, "the means of the assigned rows are not far from the centres"
    assert (cosine <= 1 + 1e-6).all()
    assert len(np.unique(label)) == 5
    again = clustered(vectors, 900, 5, np.random.default_rng(0))
    assert np.array_equal(again[0], label)
    assert np.array_equal(again[1], cosine)


def test_planted_groups_are_clusters():
    middles = np.eye(4, dtype=np.float32)
    vectors = np.repeat(middles, 50, axis=0) + 0.01 * np.random.default_rng(0).standard_normal((200, 4))
    label, _ = clustered(vectors.astype(np.float32), 200, 4, np.random.default_rng(1))
    assert all(len(set(label[start : start + 50])) == 1 for start in range(0, 200, 50))
    assert len(set(label)) == 4


@pytest.mark.parametrize(("rows", "clusters"), [(1, 1), (2, 1), (100, 10), (10_000_000, 3162)])
def test_the_default_number_of_clusters_is_the_square_root(rows, clusters):
    assert default_clusters(rows) == clusters


def test_one_row_and_equal_rows_are_a_cluster():
    assert clustered(points(1, 3, 0), 1, 1, np.random.default_rng(0))[0].tolist() == [0]
    label, cosine = clustered(np.tile(points(1, 3, 0), (7, 1)), 7, 3, np.random.default_rng(0))
    assert set(label) == {0}
    np.testing.assert_allclose(cosine, 1, atol=1e-6)


# --- when rows are ranked


def by_simulation(size, count, turns, moves, changes, seen, refresh):
    """The oracle: rows ahead as the selector has them, if no row is a copy."""
    ahead, given, last, found = 0, 0, None, {}
    for turn in range(turns):
        stale = last is None or (changes and turn > last) or (moves and turn - last >= refresh)
        if stale or ahead < count:
            left = size - given
            want = count if not seen or changes else count * (min(refresh, turns - turn) if moves else turns - turn)
            ahead, last = min(want, left), turn
            if left < count:
                ahead, given = count, -left
            found[turn] = ahead
        if seen:
            ahead, given = ahead - count, given + count
    return found


@given(st.integers(1, 30), st.integers(1, 9), *[st.booleans()] * 3, st.integers(1, 4), st.data())
def test_the_turns_of_ranking_are_those_of_a_simulation(size, turns, moves, changes, seen, refresh, data):
    count = data.draw(st.integers(1, size))
    found = ranking_turns(size, count, turns, moves=moves, changes=changes, seen=seen, refresh=refresh)
    assert found == by_simulation(size, count, turns, moves, changes, seen, refresh)
    assert 0 in found


def test_a_device_may_be_named():
    vectors = points(30, 4, 1)
    assert np.array_equal(nearest_earlier(vectors, torch.device("cpu")), nearest_earlier(vectors))
