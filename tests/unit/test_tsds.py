"""TSDS computes the distribution of the paper's algorithm, keeps its invariants, and draws from it."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.kinds import SELECTOR
from dataflex.core.registry import find
from dataflex.testing import TokenRows, tiny_model
from dataflex_selectors.parts import transport
from dataflex_selectors.parts.neighbours import nearest
from dataflex_selectors.parts.transport import capped, densities, transported
from dataflex_selectors.tsds import TsdsSelector
from every_component import run_objects
from hypothesis import given, settings
from hypothesis import strategies as st


def by_queue(distances, rho, alpha, scale):
    """The oracle: the paper's algorithm as it is told, step by step with a queue."""
    queries, k = distances.shape
    if k == 1:
        return np.full((queries, 1), 1 / queries)
    queue = [(1 / rho[j, 0], 0, j) for j in range(queries)]
    heapq.heapify(queue)
    cost, total, last = np.zeros(queries), 0.0, [-1] * queries
    while queue:
        s, rank, j = heapq.heappop(queue)
        rise = distances[j, rank + 1] * s - sum(distances[j, i] / rho[j, i] for i in range(rank + 1)) - cost[j]
        cost[j] += rise
        total += rise
        if alpha / scale * total >= (1 - alpha) * queries:
            break
        last[j] = rank
        if rank < k - 2:
            heapq.heappush(queue, (s + 1 / rho[j, rank + 1], rank + 1, j))
    mass = np.zeros((queries, k))
    for j in range(queries):
        for i in range(last[j] + 1):
            mass[j, i] = 1 / (queries * s * rho[j, i])
        mass[j, last[j] + 1] = max(1 / queries - mass[j].sum(), 0)
    return mass


def problem(seed, queries, k):
    source = np.random.default_rng(seed)
    return np.sort(source.random((queries, k)), axis=1), 1 + 3 * source.random((queries, k))


SIZES = {"seed": st.integers(0, 2**32), "queries": st.integers(1, 6), "k": st.integers(1, 9)}


@given(**SIZES, alpha=st.floats(0, 1), scale=st.floats(0.01, 20))
def test_mass_is_that_of_the_queue(seed, queries, k, alpha, scale):
    distances, rho = problem(seed, queries, k)
    found = transported(distances, rho, alpha, scale)
    np.testing.assert_allclose(found, by_queue(distances, rho, alpha, scale), atol=1e-12)


@given(**SIZES, alpha=st.floats(0, 1), scale=st.floats(0.01, 20))
def test_every_query_gives_all_of_its_mass_and_no_more(seed, queries, k, alpha, scale):
    mass = transported(*problem(seed, queries, k), alpha, scale)
    assert mass.min() >= 0
    np.testing.assert_allclose(mass.sum(axis=1), 1 / queries)


@given(**SIZES)
def test_with_alpha_one_all_mass_stays_at_the_nearest_neighbours(seed, queries, k):
    mass = transported(*problem(seed, queries, k), 1.0, 5.0)
    np.testing.assert_allclose(mass[:, 0], 1 / queries)


@given(**SIZES)
def test_with_alpha_zero_mass_is_spread_over_all_neighbours(seed, queries, k):
    assert (transported(*problem(seed, queries, k), 0.0, 5.0) > 0)[:, : max(1, k - 1)].all()


@given(seed=st.integers(0, 2**32), alpha=st.floats(0.01, 0.99))
def test_a_larger_alpha_never_makes_the_transport_longer(seed, alpha):
    distances, rho = problem(seed, 4, 8)
    near, wide = transported(distances, rho, min(1, alpha + 0.1), 0.5), transported(distances, rho, alpha, 0.5)
    assert (near * distances).sum() <= (wide * distances).sum() + 1e-12


def test_alpha_moves_the_spread_between_its_ends():
    distances, rho = problem(0, 4, 50)
    supports = [int((transported(distances, rho, alpha, 0.1) > 0).sum()) for alpha in (0.0, 0.1, 0.5, 0.9, 1.0)]
    assert supports == sorted(supports, reverse=True)
    assert len(set(supports)) == 5


# --- densities


def search_in(points):
    return lambda first, last, k: nearest(points[first:last], points, k)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_densities_are_sums_of_the_kernel_over_the_nearest_rows(monkeypatch, rows):
    monkeypatch.setattr(transport, "_ROWS", rows)
    points = np.random.default_rng(0).random((30, 3)).astype(np.float32)
    squares = ((points[:, None].astype(float) - points[None]) ** 2).sum(axis=2)
    kernel = -np.sort(-np.maximum(0, 1 - squares / 0.5**2), axis=1)
    for neighbours in (1, 5, 30, 100):
        expected = kernel[:, :neighbours].sum(axis=1)
        np.testing.assert_allclose(densities(search_in(points), 30, neighbours, 0.5), expected, rtol=1e-5)
    assert densities(search_in(points), 30, 30, 0.0).tolist() == [1.0] * 30


def test_density_counts_duplicates_and_is_one_for_a_row_alone():
    points = np.repeat(np.eye(4, dtype=np.float32), [1, 2, 3, 4], axis=0)  # sqrt(2) apart
    np.testing.assert_allclose(densities(search_in(points), 10, 10, 0.75), [1, 2, 2, 3, 3, 3, 4, 4, 4, 4], rtol=1e-6)


@pytest.mark.parametrize(
    ("asked", "size", "found"), [(5000, 100_000, 5000), (5000, 999, 99), (3, 40, 3), (9, 9, 1), (9, 1, 1)]
)
def test_neighbours_are_capped_at_a_tenth_of_the_pool_and_are_never_none(asked, size, found):
    assert capped(asked, size) == found


# --- the selector


def context(update):
    return UpdateContext(update, 9, step=10 * update, total_steps=90, learning_rate=1e-3, optimizer=None)


def build(dataset, target, seed=7, name="tsds", **params):
    selector = TsdsSelector(**run_objects(dataset, target), **params)
    selector.bind(name, seed)
    return selector


def pick(selector, count, update=0, model=None):
    return selector.select(model, 10 * update, count, context=context(update)).indices.tolist()


def probabilities(selector):
    return selector.scores(None, 0)


class Points:
    """Stands for an embedder: the vector of a row is in the row."""

    moves = False

    def embed(self, model, dataset, rows, desc, everywhere=True):
        vectors = np.array([dataset[int(i)]["vector"] for i in rows], dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def over_points(pool, target, **params):
    pool, target = ([{"input_ids": [5], "vector": vector} for vector in rows] for rows in (pool, target))
    selector = build(pool, target, **params)
    object.__setattr__(selector, "embedder", Points())
    return selector


@pytest.fixture(scope="module")
def pool():
    return TokenRows(120, lengths=range(6, 30))


@pytest.fixture(scope="module")
def target():
    return TokenRows(5, lengths=range(6, 30), seed=1)


def test_the_entry_point_leads_to_the_class():
    assert find(SELECTOR, "tsds") is TsdsSelector


def test_the_whole_of_it_is_the_algorithm_with_exhaustive_searches(pool, target):
    selector = build(pool, target, sigma=1.9, alpha=0.5, scale=0.01)
    x, q = selector.embedded(None, 0, np.arange(120)).astype(float), selector.embedded_target(None, 0).astype(float)
    distances = np.sqrt(np.maximum(0, ((q[:, None] - x[None]) ** 2).sum(axis=2)))
    ids = np.argsort(distances, axis=1, kind="stable")[:, :12]
    union = np.unique(ids)
    squares = ((x[union][:, None] - x[union][None]) ** 2).sum(axis=2)
    kernel = -np.sort(-np.maximum(0, 1 - squares / 1.9**2), axis=1)
    rho = dict(zip(union, kernel[:, :12].sum(axis=1), strict=True))
    assert max(rho.values()) > 2
    mass = by_queue(np.take_along_axis(distances, ids, axis=1), np.vectorize(rho.get)(ids), 0.5, 0.01)
    expected = np.bincount(ids.ravel(), mass.ravel(), 120)
    assert 5 < np.count_nonzero(expected) < len(union)
    np.testing.assert_allclose(probabilities(selector), expected, atol=1e-7)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(2, 4), st.sampled_from([0.3, 0.5, 0.7]))
def test_duplicates_share_what_the_row_alone_had(seed, copies, alpha):
    source = np.random.default_rng(seed)
    pool, target = source.standard_normal((40, 30)), source.standard_normal((3, 30))
    params = {"sigma": 0.3, "alpha": alpha, "scale": 1.0, "neighbours": 10**6, "kde_neighbours": 10**6}
    unit = pool / np.linalg.norm(pool, axis=1, keepdims=True)
    assert np.sort((unit @ unit.T).ravel())[-41] < 1 - 0.3**2 / 2  # no row is another's near-duplicate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataflex_selectors.tsds.capped", lambda neighbours, size: size)
        alone = probabilities(over_points(pool, target, **params))
        row = int(source.choice(np.flatnonzero(alone)))
        many = probabilities(
            over_points(np.concatenate([pool, np.repeat(pool[[row]], copies - 1, axis=0)]), target, **params)
        )
    group = np.array([row, *range(40, 40 + copies - 1)])
    assert many.sum() == pytest.approx(1)
    assert many[group].sum() == pytest.approx(alone[row], rel=1e-5)
    np.testing.assert_allclose(np.delete(many[:40], row), np.delete(alone, row), atol=1e-7)


def test_each_duplicate_of_a_filled_row_has_an_equal_share_and_without_kernel_density_all_have_as_much_as_another_row():
    source = np.random.default_rng(3)
    pool = np.concatenate([source.standard_normal((197, 8)), np.tile([[1.0] + [0.0] * 7], (3, 1))])
    target = [[1.0] + [0.01] * 7]
    with_density = probabilities(over_points(pool, target, alpha=0.01, scale=50.0, kde_neighbours=20))
    without = probabilities(over_points(pool, target, alpha=0.01, scale=50.0, sigma=0.0))
    np.testing.assert_allclose(with_density[197:], with_density[197], rtol=1e-5)
    full = np.sort(without)[::-1][1]
    np.testing.assert_allclose(without[197:], full)
    assert with_density[197:].sum() < 0.6 * without[197:].sum()


@pytest.mark.parametrize("size", [1, 2, 5, 9, 10, 19, 25])
def test_a_pool_of_any_size_gives_probabilities_and_draws(size, target):
    rows = TokenRows(size, lengths=12, seed=9)
    selector = build(rows, target)
    p = probabilities(selector)
    assert p.shape == (size,)
    assert p.sum() == pytest.approx(1)
    assert set(pick(selector, 30)) <= set(np.flatnonzero(p))
    if size < 20:  # a tenth of them is one neighbour
        x, q = selector.embedded(None, 0, np.arange(size)), selector.embedded_target(None, 0)
        assert set(np.flatnonzero(p)) == set(nearest(q, x, 1)[1][:, 0])


def test_draws_with_replacement_follow_the_probabilities(pool, target):
    selector = build(pool, target, sigma=1.0, alpha=0.1)
    p = probabilities(selector)
    counts = np.bincount([row for update in range(10) for row in pick(selector, 400, update)], minlength=120)
    held = p > 0
    expected = 4000 * p[held]
    assert counts[~held].sum() == 0
    chi_square = ((counts[held] - expected) ** 2 / expected).sum()
    assert chi_square < held.sum() - 1 + 4 * np.sqrt(2 * (held.sum() - 1))


def test_draws_without_replacement_are_different_rows_and_likely_ones_first(pool, target):
    selector = build(pool, target, replacement=False)
    assert selector.replacement is False
    support = np.count_nonzero(probabilities(selector))
    picks = [pick(selector, support, update) for update in range(200)]
    assert all(len(set(rows)) == support for rows in picks)
    firsts = np.bincount([rows[0] for rows in picks], minlength=120)
    p = probabilities(selector)
    assert abs(firsts[p.argmax()] - 200 * p.max()) < 4 * np.sqrt(200 * p.max())


def test_more_different_rows_than_have_a_probability_are_refused(pool, target):
    selector = build(pool, target, replacement=False)
    support = np.count_nonzero(probabilities(selector))
    message = rf"{support + 1} rows are wanted, but only {support} of 120 have a prob.*-> use replac.*shorter stretch"
    with pytest.raises(ComponentError, match=message):
        pick(selector, support + 1, 3)


def test_rows_may_repeat_by_default_and_their_scores_are_their_probabilities(pool, target):
    selector = build(pool, target)
    assert TsdsSelector.replacement is selector.replacement is True
    answer = selector.select(None, 0, 300, context=context(0))
    np.testing.assert_allclose(answer.scores, probabilities(selector)[answer.indices])
    assert len(set(answer.indices.tolist())) < 300


def test_rows_without_labels_have_no_probability(pool, target):
    dataset = [row | {"labels": [-100] * len(row["labels"])} if i < 60 else row for i, row in enumerate(pool)]
    assert np.isnan(probabilities(build(dataset, target))).tolist() == [True] * 60 + [False] * 60
    assert min(pick(build(dataset, target), 100)) >= 60
    with pytest.raises(ComponentError, match="1 rows are wanted, but only 0 of 60 have a label"):
        pick(build(dataset[:60], target), 1, 1)


def test_draws_repeat_for_a_seed_and_change_with_the_update_the_seed_and_the_preset(pool, target):
    first = pick(build(pool, target), 20, 1)
    assert pick(build(pool, target), 20, 1) == first
    assert pick(build(pool, target), 20, 2) != first
    assert pick(build(pool, target, seed=8), 20, 1) != first
    assert pick(build(pool, target, name="other"), 20, 1) != first


@pytest.mark.parametrize("params", [{}, {"embedding": "model", "refresh": 2}, {"replacement": False, "alpha": 0.1}])
def test_a_resumed_selector_continues_as_if_never_stopped(pool, target, params):
    models = [tiny_model(seed=seed) for seed in range(6)]
    whole, first, resumed = (build(pool, target, **params) for _ in range(3))
    expected = [pick(whole, 8, update, models[update]) for update in range(6)]
    found = [pick(first, 8, update, models[update]) for update in range(3)]
    resumed.load_state_dict(first.state_dict())
    found += [pick(resumed, 8, update, models[update]) for update in range(3, 6)]
    assert found == expected


def test_the_distribution_follows_the_model_at_every_refresh(pool, target):
    selector = build(pool, target, embedding="model", refresh=2)
    states = []
    for update in range(4):
        pick(selector, 8, update, tiny_model(seed=update))
        states.append(selector.state_dict()["p"].tolist())
    assert states[0] == states[1] != states[2] == states[3]


def test_tsds_reports_all_bad_parameters_at_once():
    bad = {"neighbours": 0, "kde_neighbours": 1.5, "sigma": -1, "alpha": 2, "scale": 0, "replacement": "no"}
    with pytest.raises(ConfigError, match="8 problems") as caught:
        build([], None, backend="x", **bad)
    for key in (*bad, "backend", "eval_dataset"):
        assert f"{key} of the tsds selector" in str(caught.value)
