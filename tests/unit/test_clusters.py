"""k-means finds groups, repeats exactly, and leaves no cluster empty; arms and quotas give out what they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataflex.scoring import k_means as module
from dataflex.scoring.k_means import k_means
from dataflex_selectors.parts.arms import next_pulls, quotas
from dataflex_selectors.parts.smoothing import smoothed


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def blobs(groups: int, each: int, seed: int = 0) -> np.ndarray:
    """Unit vectors around ``groups`` orthogonal directions, group by group."""
    centres = np.eye(16)[np.repeat(np.arange(groups), each)]
    found = centres + 0.05 * np.random.default_rng(seed).standard_normal(centres.shape)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("seed", range(25))
def test_groups_far_from_each_other_are_the_clusters(seed):
    label = k_means(blobs(6, 20), 6, draws(seed))[:, 0].reshape(6, 20)
    assert (label == label[:, :1]).all()
    assert sorted(label[:, 0]) == list(range(6))


def test_the_result_is_a_fixed_point_of_the_slow_algorithm():
    vectors = np.random.default_rng(3).standard_normal((200, 8)).astype(np.float32)
    found = k_means(vectors, 7, draws(), iterations=200)
    centres = np.stack([vectors[found[:, 0] == c].mean(axis=0) for c in range(7)])
    distances = ((vectors[:, None] - centres[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(found, np.argsort(distances, axis=1)[:, :2])


def test_blocks_of_rows_change_nothing(monkeypatch):
    vectors = np.random.default_rng(3).standard_normal((100, 8)).astype(np.float32)
    whole = k_means(vectors, 5, draws())
    monkeypatch.setattr(module, "_CELLS", 35)
    np.testing.assert_array_equal(k_means(vectors, 5, draws()), whole)
    assert not np.array_equal(k_means(vectors, 5, draws(1)), whole)


def test_equal_rows_make_fewer_clusters_and_none_is_empty():
    vectors = 7 * np.random.default_rng(0).standard_normal((5, 777)).astype(np.float32)[np.arange(30) % 5]
    found = k_means(vectors, 8, draws())
    assert found.shape == (30, 2)
    assert set(found[:, 0]) == {0, 1, 2, 3, 4}
    assert len(module._spread_out(torch.from_numpy(vectors), 8, draws())) == 5
    assert (found[:, 0] != found[:, 1]).all()
    assert k_means(vectors[:1], 4, draws()).tolist() == [[0]]


def test_a_centre_without_rows_takes_the_row_farthest_from_its_own():
    vectors = torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 9.0], [5.0, 0.0]])
    centres = torch.tensor([[0.0, 1.0], [5.0, 0.0], [50.0, 50.0]])
    means = module._means(vectors, torch.tensor([0, 0, 0, 1]), centres)
    assert means.tolist()[1:] == [[5.0, 0.0], [0.0, 9.0]]
    numbers = module._without_empty(vectors, torch.tensor([[0, 2], [0, 2], [0, 1], [1, 0]]), centres[[0, 2, 1]])
    assert numbers[:, 0].tolist() == [0, 0, 0, 0]  # of the two that have rows, the first is nearest to all
    numbers = module._without_empty(vectors, torch.tensor([[0, 2], [0, 2], [0, 2], [2, 0]]), centres[[0, 2, 1]])
    assert numbers.tolist() == [[0, 1], [0, 1], [0, 1], [1, 0]]


@pytest.mark.parametrize("seed", range(20))
def test_every_number_below_the_largest_is_used(seed):
    vectors = np.random.default_rng(seed).standard_normal((40, 2)).astype(np.float32)
    label = k_means(vectors, 15, draws(seed), iterations=3)[:, 0]
    assert set(label) == set(range(label.max() + 1))


def test_smoothing_is_the_kernel_mean_over_two_clusters():
    vectors, rng = blobs(4, 8), np.random.default_rng(1)
    nearest = k_means(vectors, 4, draws())
    scored = np.array([0, 3, 9, 17, 25, 31])
    scores = rng.standard_normal((6, 2))
    scores[1, 0] = np.nan  # of one set alone
    found = smoothed(vectors, nearest, scored, scores, 0.05)
    for row in range(len(vectors)):
        near = [r for r in (0, 2, 3, 4, 5) if nearest[scored[r], 0] in nearest[row]]
        weights = np.exp(vectors[scored[near]].astype(float) @ vectors[row].astype(float) / 0.05)
        expected = weights @ scores[near] / weights.sum()
        if row in scored[near]:
            expected = scores[near][list(scored[near]).index(row)]
        np.testing.assert_allclose(found[row], expected, rtol=1e-4)


def test_smoothing_tells_rows_of_one_cluster_apart():
    angle = np.linspace(0, 0.5, 11)
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    found = smoothed(vectors, np.zeros((11, 1), dtype=np.int64), np.array([0, 10]), np.array([[0.0], [1.0]]), 0.05)
    assert (np.diff(found[:, 0]) > 0).all()


def test_rows_without_any_score_nearby_have_none():
    nearest = np.array([[0, 1], [1, 0], [2, 3], [3, 2]])
    found = smoothed(np.eye(4), nearest, np.array([0, 2]), np.array([[1.0], [np.nan]]), 0.05)[:, 0]
    assert found[:2].tolist() == [1.0, 1.0]
    assert np.isnan(found[2:]).all()


def test_pulls_go_to_the_best_arm_and_explore_the_unknown():
    label = np.array([0, 0, 1, 1, 2, 2])
    score = np.array([0.1, 0.1, 0.5, 0.5, 0.4, 0.4])
    left = np.array([10, 3, 10])
    assert next_pulls(label, score, left, 5, 0.0).tolist() == [0, 3, 2]
    wide = np.array([0.1, 0.1, 0.5, 0.5, 0.0, 0.8])
    assert next_pulls(label, wide, left, 2, 1.0).tolist() == [0, 0, 2]
    assert next_pulls(label, score, np.array([1, 0, 1]), 9, 1.0).tolist() == [1, 0, 1]


def test_quotas_follow_size_and_score_and_are_filled_up():
    sizes = np.array([10, 20, 0, 30])
    assert quotas(sizes, np.zeros(4), 12, 1.0).tolist() == [2, 4, 0, 6]
    best = quotas(sizes, np.array([3.0, 2.0, 9.0, 1.0]), 25, 0.01)
    assert best.tolist() == [10, 15, 0, 0]
    z = np.array([3.0, 2.0, 1.0]) - 2.0
    share = np.array([10, 20, 30]) * np.exp(z / z.std() / 2.0)
    found = quotas(sizes, np.array([3.0, 2.0, np.nan, 1.0]), 12, 2.0)
    assert found.sum() == 12
    np.testing.assert_allclose(found[[0, 1, 3]], 12 * share / share.sum(), atol=1)
    assert quotas(sizes, np.array([1.0, 5.0, 0.0, 2.0]), 60, 1.0).tolist() == sizes.tolist()
