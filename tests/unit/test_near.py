"""Near takes the nearest rows query by query in turn, goes on where it stopped, and resumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.kinds import SELECTOR
from dataflex.discovery.component_classes import find
from dataflex.testing import TokenRows, tiny_model
from dataflex_selectors import near
from dataflex_selectors.near import NearSelector, nearest_in_turn
from dataflex_selectors.parts.neighbours import nearest
from every_component import run_objects
from hypothesis import given
from hypothesis import strategies as st


def by_hand(ids_MK, count):
    """The oracle: all first neighbours, all second ones, ..., a row once."""
    taken = []
    for rank in range(ids_MK.shape[1]):
        for query in range(ids_MK.shape[0]):
            if ids_MK[query, rank] not in taken:
                taken.append(int(ids_MK[query, rank]))
    return taken[:count]


def lookup(distances_MN, asked=None):
    def search(first, last, k):
        if asked is not None:
            asked.append(k)
        ids = np.argsort(distances_MN[first:last], axis=1, kind="stable")[:, :k]
        return np.take_along_axis(distances_MN[first:last], ids, axis=1), ids

    return search


# --- the mathematics


@given(st.integers(1, 6), st.integers(1, 15), st.integers(0, 2**32), st.sampled_from([1, 3, 10**6]), st.data())
def test_rows_come_rank_by_rank_and_query_by_query_each_once(queries, size, seed, cells, data):
    count = data.draw(st.integers(1, size))
    distances = np.random.default_rng(seed).integers(0, 9, (queries, size)).astype(float)
    before, near._CELLS = near._CELLS, cells
    try:
        rows, found, takers_of = nearest_in_turn(lookup(distances), queries, size, count)
    finally:
        near._CELLS = before
    ids = np.argsort(distances, axis=1, kind="stable")
    assert rows.tolist() == by_hand(ids, count)
    taken = dict(zip(rows, takers_of, strict=True))
    for row, distance in zip(rows, found, strict=True):
        ranks = np.flatnonzero((ids == row).any(axis=0))
        takers = np.flatnonzero(ids[:, ranks[0]] == row)
        assert distance == distances[takers[0], row]
        assert taken[row] == takers[0]


def test_as_many_neighbours_are_looked_up_as_it_takes():
    asked = []
    distances = np.tile(np.arange(40.0), (10, 1))  # all queries have the same neighbours
    rows, *_ = nearest_in_turn(lookup(distances, asked), 10, 40, 30)
    assert rows.tolist() == list(range(30))
    assert sorted(set(asked)) == [6, 12, 24, 40]


# --- the selector


def context(update, updates=9):
    return UpdateContext(update, updates, step=10 * update, total_steps=90, learning_rate=1e-3, optimizer=None)


def build(dataset, target, seed=7, **params):
    selector = NearSelector(**run_objects(dataset, target), **params)
    selector.bind("near", seed)
    return selector


def pick(selector, count, update=0, model=None):
    answer = selector.select(model, 10 * update, count, context=context(update))
    assert len(answer.scores) == count
    return answer.indices.tolist()


@pytest.fixture(scope="module")
def pool():
    return TokenRows(60, lengths=range(6, 30))


@pytest.fixture(scope="module")
def target():
    return TokenRows(5, lengths=range(6, 30), seed=1)


def test_the_entry_point_leads_to_the_class():
    assert find(SELECTOR, "near") is NearSelector


@pytest.mark.parametrize("embedding", ["ngrams", "model"])
def test_it_picks_what_a_search_over_all_distances_picks_and_tells_the_cosines(pool, target, embedding):
    model = tiny_model()
    selector = build(pool, target, embedding=embedding)
    answer = selector.select(model, 0, 25, context=context(0))
    x, q = selector.embedder.embed(model, pool, np.arange(60), ""), selector.embedded_target(model, 0)
    assert answer.indices.tolist() == by_hand(nearest(q, x, 60)[1], 25)
    cosines = q @ x.T
    takers = nearest(q, x, 60)[1].argsort(axis=1)[:, answer.indices].argmin(axis=0)  # who has the row at least rank
    np.testing.assert_allclose(answer.scores, cosines[takers, answer.indices], atol=1e-5)


def test_scores_are_the_cosines_with_the_nearest_query_and_nan_without_a_label(pool, target):
    dataset = [row | {"labels": [-100] * len(row["labels"])} if i < 7 else row for i, row in enumerate(pool)]
    selector = build(dataset, target)
    cosines = selector.embedded_target(None, 0) @ selector.embedded(None, 0, np.arange(60)).T
    expected = np.where(np.arange(60) < 7, np.nan, cosines.max(axis=0))
    np.testing.assert_allclose(selector.scores(None, 0), expected, atol=1e-6)
    assert np.isnan(build(dataset[:7], target).scores(None, 0)).all()


def test_copies_of_the_target_among_the_rows_are_found_first(pool, target):
    mixed = [*list(pool)[:30], *target, *list(pool)[30:]]
    for embedding in ("ngrams", "model"):
        selector = build(mixed, target, embedding=embedding)
        answer = selector.select(tiny_model(), 0, 5, context=context(0))
        assert sorted(answer.indices) == [30, 31, 32, 33, 34]
        np.testing.assert_allclose(answer.scores, 1, atol=1e-5)


def test_several_evaluation_sets_are_one_list_of_queries(pool):
    first, second = TokenRows(2, lengths=20, seed=5), TokenRows(3, lengths=20, seed=6)
    together = [*first, *second]
    assert pick(build(pool, {"a": first, "b": second}), 20) == pick(build(pool, together), 20)


def test_updates_go_on_where_the_last_one_stopped_and_no_row_comes_again_before_all_have(pool, target):
    selector = build(pool, target)
    picks = [pick(selector, 13, update) for update in range(9)]
    assert all(len(set(rows)) == 13 for rows in picks)
    stream = [row for rows in picks for row in rows]
    assert sorted(stream[:60]) == list(range(60))
    order = by_hand(nearest(selector.embedded_target(None, 0), selector.embedded(None, 0, np.arange(60)), 60)[1], 60)
    assert stream[:26] == order[:26]
    assert (
        stream[60:65] == [row for row in order if row not in picks[4][:8]][:5]
    )  # the next round, without this stretch's
    assert stream[65:78] == [row for row in order if row not in picks[4]][:13]


def test_the_rows_ahead_are_ranked_anew_where_more_are_asked_for_than_there_are(pool, target):
    selector = build(pool, target)
    stream = [*pick(selector, 3, 0), *pick(selector, 30, 1), *pick(selector, 5, 2)]
    assert stream == pick(build(pool, target), 38)


def test_without_exclude_seen_each_update_has_the_same_rows(pool, target):
    selector = build(pool, target, exclude_seen=False)
    assert pick(selector, 13, 0) == pick(selector, 13, 1) == pick(build(pool, target), 13)
    assert pick(selector, 20, 2)[:13] == pick(selector, 13, 3)


def test_the_models_embedding_follows_the_model_at_every_refresh_and_not_between(pool, target):
    models = [tiny_model(seed=seed) for seed in range(4)]
    selector = build(pool, target, embedding="model", refresh=2, exclude_seen=False)
    picks = [pick(selector, 12, update, model) for update, model in enumerate(models)]
    fresh = [pick(build(pool, target, embedding="model"), 12, 0, model) for model in models]
    assert picks == [fresh[0], fresh[0], fresh[2], fresh[2]]
    assert fresh[0] != fresh[2]


def test_a_refresh_leaves_out_rows_that_were_given(pool, target):
    selector = build(pool, target, embedding="model")
    picks = [pick(selector, 15, update, tiny_model(seed=update)) for update in range(4)]
    assert sorted(row for rows in picks for row in rows) == list(range(60))


@pytest.mark.parametrize("params", [{}, {"exclude_seen": False}, {"embedding": "model", "refresh": 2}])
def test_a_resumed_selector_continues_as_if_never_stopped(pool, target, params):
    models = [tiny_model(seed=seed) for seed in range(6)]
    whole, first, resumed = (build(pool, target, **params) for _ in range(3))
    expected = [pick(whole, 13, update, models[update]) for update in range(6)]
    found = [pick(first, 13, update, models[update]) for update in range(3)]
    resumed.load_state_dict(first.state_dict())
    found += [pick(resumed, 13, update, models[update]) for update in range(3, 6)]
    assert found == expected


def test_the_choice_does_not_depend_on_the_seed_and_draws_nothing(pool, target):
    before = torch.get_rng_state().tolist(), str(np.random.get_state())
    assert pick(build(pool, target, seed=1), 20) == pick(build(pool, target, seed=2), 20)
    assert (torch.get_rng_state().tolist(), str(np.random.get_state())) == before


def test_rows_without_labels_are_never_taken_and_too_few_others_are_an_error(pool, target):
    dataset = [row | {"labels": [-100] * len(row["labels"])} if i < 40 else row for i, row in enumerate(pool)]
    assert sorted(pick(build(dataset, target), 20)) == list(range(40, 60))
    message = r"21 rows are wanted, but only 20 of 60 have a label .* -> .*a shorter stretch"
    with pytest.raises(ComponentError, match=message):
        pick(build(dataset, target), 21, 3)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (None, "eval_dataset of the near selector: the run has no evaluation set.* -> set eval_dataset, or val_size"),
        ({"a": [1], "b": []}, "the evaluation set 'b' has no rows"),
    ],
)
def test_near_needs_a_target(target, message):
    with pytest.raises(ConfigError, match=message):
        build([], target)


def test_near_reports_all_bad_parameters_at_once(target):
    with pytest.raises(ConfigError, match="5 problems") as caught:
        build([], target, embedding="modl", refresh=0, token_budget=-1, exclude_seen="no", backend="annoy")
    for key in ("embedding", "refresh", "token_budget", "exclude_seen", "backend"):
        assert f"{key} of the near selector" in str(caught.value)
