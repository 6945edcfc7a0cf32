"""SemDeDup keeps one of each group of near copies; its numbers are those of the authors' program."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
import torch
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.errors import CheckpointError, ComponentError, ConfigError
from dataflex.core.kinds import SELECTOR
from dataflex.discovery.component_classes import find
from dataflex.testing import TokenRows, tiny_model
from dataflex_selectors.parts.near_copies import nearest_earlier
from dataflex_selectors.semdedup import SemDedupSelector, in_clusters, keep_order, parts_of
from every_component import run_objects
from golden_numbers import golden_cases
from hypothesis import given, settings
from hypothesis import strategies as st

CASES = golden_cases("semdedup")
SIZE = 60


def distances(case):
    """The distance of each row to its centre, as the program's settings have it."""
    inputs, params = case["inputs"], case["params"]
    given, vectors = np.array(inputs["dist_to_cent"]), np.array(inputs["embeddings"])
    if params["sim_metric"] == "l2":
        return given
    if params["spherical"]:
        return 1 - given
    centres = np.array(inputs["centroids"])[inputs["cluster_ids"]]
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(centres, axis=1)
    return 1 - (vectors * centres).sum(1) / lengths


# --- the authors' numbers


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_rows_left_out_are_those_of_the_authors_program(case):
    """Of a case with random order, the order is taken as given: theirs draws from Python's global generator."""
    inputs, params = case["inputs"], case["params"]
    vectors, far = np.array(inputs["embeddings"], dtype=np.float32), distances(case)
    keep = params["which_to_keep"]
    if not params["keep_hard"]:  # clusters sorted the other way round
        keep = {"hard": "easy", "easy": "hard"}.get(keep, keep)
    clusters = [rows for rows in in_clusters(np.array(inputs["cluster_ids"])) if len(rows)]
    outputs = {one["cluster"]: one for one in case["outputs"]["clusters"]}
    kept = {eps: [] for eps in case["outputs"]["kept_in_order"]}
    for own in clusters:
        said = outputs[inputs["cluster_ids"][own[0]]]
        order = own[keep_order(far[own], keep, np.random.default_rng(0))]
        if keep == "random":
            order = np.array(said["rows_in_order_used"])
        elif len(np.unique(far[own].round(7))) == len(own):  # equal distances are sorted by rounding
            assert order.tolist() == said["rows_in_order_used"]
        else:
            order = np.array(said["rows_in_order_used"])
        for part in parts_of(order, params["largest_cluster_size_to_process"]):
            similar = nearest_earlier(vectors[part])
            for row, value in zip(part.tolist(), similar.tolist(), strict=True):
                at = said["rows_in_order_used"].index(row)
                theirs = (said["max_similarity_to_earlier"] or [0.0] * len(own))[at]
                assert value == pytest.approx(min(theirs, 1.0), abs=2e-6)
            for eps, rows in kept.items():
                rows += part[similar <= 1 - float(eps)].tolist()
    for eps, rows in kept.items():
        if 0 < float(eps) < 1:  # others are refused: they leave out whatever has a positive cosine, or all rows
            assert rows == case["outputs"]["kept_in_order"][eps], eps


def test_unequal_lengths_of_vectors_are_no_copies_here_as_rows_come_with_length_one():
    """Theirs takes plain products, so that a long vector is a copy of anything; a file is brought to length 1."""
    case = next(case for case in CASES if case["name"] == "not_normalised_quirk")
    vectors = np.array(case["inputs"]["embeddings"])
    assert np.linalg.norm(vectors, axis=1).max() > 1.1


@given(st.integers(1, 30), st.sampled_from([None, 1, 2, 5, 100]))
@settings(max_examples=40)
def test_a_large_cluster_is_cut_into_parts_of_nearly_equal_size(size, most):
    parts = parts_of(np.arange(size), most)
    assert np.concatenate(parts).tolist() == list(range(size))
    lengths = [len(part) for part in parts]
    assert max(lengths) <= (most or size)
    assert max(lengths) - min(lengths) <= 1


# --- the selector


def oracle(vectors, label, far, eps, keep, against):
    """Which rows stay, by comparing all pairs in float64."""
    stays = np.ones(len(vectors), dtype=bool)
    for cluster in np.unique(label):
        own = np.flatnonzero(label == cluster)
        order = sorted(own, key=lambda row: -far[row])
        order = order[::-1] if keep == "easy" else order
        for place, row in enumerate(order):
            before = [other for other in order[:place] if against == "earlier" or stays[other]]
            stays[row] = not any(vectors[row] @ vectors[other] > 1 - eps for other in before)
    return stays


def build(dataset, seed=7, **params):
    selector = SemDedupSelector(**run_objects(dataset), **params)
    selector.bind("semdedup", seed)
    return selector


def context(update, updates=9):
    return UpdateContext(update, updates, 10 * update, 90, 1e-3, None)


def pick(selector, count, update=0, model=None):
    answer = selector.select(model, 10 * update, count, context=context(update))
    assert len(answer.scores) == len(set(answer.indices.tolist())) == count
    return answer.indices.tolist()


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """60 rows in 12 groups of five near copies."""
    generator = np.random.default_rng(0)
    middles = generator.standard_normal((12, 16))
    vectors = np.repeat(middles, 5, axis=0) + 0.05 * generator.standard_normal((SIZE, 16))
    file = tmp_path_factory.mktemp("vectors") / "v.npy"
    np.save(file, vectors)
    return TokenRows(SIZE, lengths=range(6, 30)), str(file), np.repeat(np.arange(12), 5)


def test_the_entry_point_leads_to_the_class():
    assert find(SELECTOR, "semdedup") is SemDedupSelector


@pytest.mark.parametrize("keep", ["hard", "easy"])
@pytest.mark.parametrize("against", ["earlier", "kept"])
@pytest.mark.parametrize("seed", range(4))
def test_the_rows_that_stay_are_those_of_a_comparison_of_all_pairs(tmp_path, keep, against, seed):
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((SIZE, 3))  # fewer than the sample of k-means: the centre is the mean
    np.save(tmp_path / "v.npy", vectors)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    selector = build(
        TokenRows(SIZE), seed, vectors=str(tmp_path / "v.npy"), eps=0.03, keep=keep, against=against, clusters=1
    )
    pick(selector, 3)
    middle = vectors.mean(0) / np.linalg.norm(vectors.mean(0))
    expected = oracle(vectors, np.zeros(SIZE), 1 - vectors @ middle, 0.03, keep, against)
    assert 10 < expected.sum() < 55
    assert selector._stays.tolist() == expected.tolist()


def test_against_kept_keeps_what_only_a_row_that_is_left_out_is_near(tmp_path):
    """A chain of rows, each near the next one: the authors' rule keeps the first, the other every second one."""
    angles = np.arange(8) * 0.2
    np.save(tmp_path / "v.npy", np.stack([np.cos(angles), np.sin(angles)], axis=1))
    eps, rows = 1 - np.cos(0.25), TokenRows(8)
    stay = {}
    for against in ("earlier", "kept"):
        selector = build(rows, vectors=str(tmp_path / "v.npy"), eps=float(eps), clusters=1, against=against)
        pick(selector, 1)
        stay[against] = selector._stays.sum()
    assert stay["earlier"] < stay["kept"] == 4


@pytest.mark.parametrize("keep", ["hard", "easy", "random"])
def test_one_of_each_planted_group_stays_and_all_of_them_come_before_any_comes_again(planted, keep):
    rows, file, groups = planted
    selector = build(rows, vectors=file, keep=keep, clusters=3)
    picks = [pick(selector, 4, update) for update in range(6)]
    for start in (0, 3):
        assert sorted(groups[list(itertools.chain(*picks[start : start + 3]))].tolist()) == list(range(12))
    assert picks[0] != picks[3]
    across = build(rows, vectors=file, keep=keep, clusters=3)
    first, second = pick(across, 8, 0), pick(across, 8, 1)
    assert set(groups[first]) | set(groups[second]) == set(range(12))


def test_exclude_seen_false_draws_from_all_that_stay(planted):
    rows, file, groups = planted
    selector = build(rows, vectors=file, exclude_seen=False, clusters=3)
    drawn = [pick(selector, 8, update) for update in range(5)]
    assert all(len(set(groups[rows])) == 8 for rows in drawn)
    assert len({row for rows in drawn for row in rows}) == 12
    assert set(drawn[0]) & set(drawn[1])


def test_copies_come_last_the_least_alike_first_and_a_log_line_says_how_many(planted, caplog):
    rows, file, groups = planted
    selector = build(rows, vectors=file, clusters=1)
    with caplog.at_level(logging.INFO):
        found = selector.select(None, 0, 20, context=context(0))
    assert "48 of 60 rows are copies of others (eps 0.05)" in caplog.text
    assert "20 rows are wanted and 12 stay, so 8 copies are among them" in caplog.text
    assert len(set(groups[found.indices[:12]])) == 12
    alike = np.sort(selector._similar[~selector._stays])
    np.testing.assert_allclose(1 - found.scores[12:], alike[:8], atol=1e-6)
    assert sorted(pick(selector, SIZE, 1)) == list(range(SIZE))


def test_too_few_error_says_how_many_stay(planted):
    rows, file, _ = planted
    selector = build(rows, vectors=file, clusters=1, too_few="error")
    with pytest.raises(ComponentError, match=r"13 rows are wanted, and 12 of 60 are left .*eps: 0.05.*a smaller eps"):
        pick(selector, 13)


@pytest.mark.parametrize("embedding", ["ngrams", "model"])
def test_copies_of_rows_are_found_in_their_embeddings(embedding):
    rows = TokenRows(40, lengths=range(6, 30))
    copies = [*list(rows), *list(rows)[:20]]
    selector = build(copies, embedding=embedding, eps=1e-4, clusters=2)
    found = pick(selector, 40, model=tiny_model())
    assert sorted(row % 40 for row in found) == list(range(40))
    assert selector._stays.sum() == 40


def test_the_score_of_a_row_is_its_distance_from_the_rows_before_it(planted):
    rows, file, groups = planted
    dataset = [row | {"labels": [-100] * len(row["labels"])} if i == 8 else row for i, row in enumerate(rows)]
    selector = build(dataset, vectors=file, clusters=1)
    scores = selector.scores(None, 0, context=context(0))
    assert np.isnan(scores[8])
    for group in range(12):
        own = [row for row in np.flatnonzero(groups == group) if row != 8]
        assert (scores[own] >= 0.05).sum() == 1
        assert (scores[own] < 0.05).sum() == len(own) - 1
    assert scores[np.isfinite(scores)].max() == 1


def test_max_cluster_compares_rows_of_a_part_alone(planted):
    rows, file, _ = planted
    whole, cut = (build(rows, vectors=file, clusters=1, max_cluster=most) for most in (None, 10))
    for selector in (whole, cut):
        pick(selector, 3)
    assert cut._stays.sum() > whole._stays.sum()
    assert (cut._stays | ~whole._stays).all()
    assert (cut._similar <= whole._similar + 1e-6).all()


@pytest.mark.parametrize("params", [{}, {"embedding": "model", "refresh": 2}, {"keep": "random", "too_few": "error"}])
def test_a_resumed_run_draws_what_the_whole_one_does(params):
    rows, model = TokenRows(50, lengths=range(6, 30)), tiny_model()
    through, picks, states = build(rows, **params), [], []
    for update in range(6):
        states.append(through.state_dict())
        picks.append(pick(through, 9, update, model))
    for begin in range(6):
        resumed = build(rows, **params)
        resumed.load_state_dict(states[begin])
        assert [pick(resumed, 9, update, model) for update in range(begin, 6)] == picks[begin:]


def test_other_vectors_than_before_are_refused_at_a_resume(planted, tmp_path):
    rows, file, _ = planted
    state = build(rows, vectors=file).state_dict()
    np.save(tmp_path / "w.npy", np.load(file) + 1)
    with pytest.raises(CheckpointError, match="other vectors"):
        build(rows, vectors=str(tmp_path / "w.npy")).load_state_dict(state)


def test_nothing_is_drawn_from_the_global_generators(planted):
    rows, file, _ = planted
    np.random.seed(3)
    expected = np.random.RandomState(3).random()
    pick(build(rows, vectors=file, keep="random"), 5)
    assert np.random.random() == expected


@pytest.mark.parametrize("size", [1, 2])
def test_one_row_and_two_equal_rows(size):
    rows = list(TokenRows(1)) * size
    assert pick(build(rows), 1) in ([0], [1])
    assert sorted(pick(build(rows), size)) == list(range(size))
    with pytest.raises(ComponentError, match=f"{size + 1} rows are wanted, but only {size} of {size}"):
        build(rows).select(None, 0, size + 1, context=context(0))


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"eps": 0}, "of at least 1e-06 and below 1"),
        ({"eps": 1e-8}, "found 1e-08, allowed: a number of at least 1e-06"),  # of which equal rows would stay
        ({"eps": 1.0}, "of at least 1e-06 and below 1"),
        ({"eps": "0.1"}, "of at least 1e-06 and below 1"),
        ({"keep": "best"}, "hard, easy, random"),
        ({"against": "all"}, "earlier, kept"),
        ({"clusters": 0}, "whole number of at least 1"),
        ({"max_cluster": 1.5}, "whole number of at least 1"),
        ({"too_few": "fill"}, "error, relax"),
        ({"vectors": "v.npy", "embedding": "model"}, "beside embedding: model"),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(params, said):
    with pytest.raises(ConfigError, match=said):
        build(TokenRows(4), **params)


def test_a_file_for_other_rows_is_refused(tmp_path):
    np.save(tmp_path / "v.npy", np.eye(5))
    with pytest.raises(ConfigError, match="5 vectors, for 4 rows"):
        build(TokenRows(4), vectors=str(tmp_path / "v.npy"))


@pytest.mark.parametrize(("clusters", "told"), [(SIZE, True), (SIZE - 1, False), (None, False)])
def test_as_many_clusters_as_rows_are_told_since_no_copies_would_be_found(tmp_path, caplog, clusters, told):
    np.save(tmp_path / "v.npy", np.eye(SIZE))
    made = build(TokenRows(SIZE), vectors=str(tmp_path / "v.npy"), clusters=clusters)
    made.check_run(torch.nn.Linear(1, 1), RunAhead(1, 10, 8))
    said = f"clusters: {clusters} for {SIZE} rows, so each is a cluster by itself and only rows with the same vector"
    assert (said in caplog.text) == told
