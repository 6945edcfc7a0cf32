"""Deita walks down the scores past rows near those that it took; its numbers are those of the authors' program."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.errors import CheckpointError, ComponentError, ConfigError
from dataflex.core.kinds import SELECTOR
from dataflex.discovery.component_classes import find
from dataflex.rows.views import PlannedRows
from dataflex.scoring.named_scores import NamedScores
from dataflex.testing import TokenRows, pad_collate, tiny_model
from dataflex_selectors.deita import DeitaSelector, is_near, looser, score_problems
from dataflex_selectors.parts.near_copies import cosine_above, nearest_earlier, walked_apart
from every_component import run_objects
from golden_numbers import golden_cases

CASES = golden_cases("deita")
SIZE = 60


def names(case):
    return case["name"]


def unit(case):
    vectors = np.array(case["inputs"]["embeddings"], dtype=np.float64)
    if case["params"]["distance_metric"] == "manhattan" and not case["params"]["normalize_emb"]:
        return vectors.astype(np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0).astype(np.float32)


def most(case):
    return None if case["params"]["data_size"] < 0 else case["params"]["data_size"]


# --- the authors' numbers


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in CASES
        if case["params"]["distance_metric"] == "cosine"
        and case["params"]["batch_size"] == 1
        and case["params"]["threshold"] >= 0
    ],
    ids=names,
)
def test_the_walk_keeps_the_rows_of_the_authors_program(case):
    order = np.array(case["outputs"]["sorted_order"])
    found = walked_apart(unit(case), order, cosine_above(case["params"]["threshold"]), most(case))
    assert found.tolist() == case["outputs"]["kept_in_order"]


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if all(len(row) == 1 for key in case["inputs"]["scores"].values() for row in key)],
    ids=names,
)
def test_products_of_scores_give_the_authors_order_where_a_row_has_one_turn(case):
    turns = list(case["inputs"]["scores"].values())
    product = np.prod([[float(row[0]) for row in key] for key in turns], axis=0)
    expected = np.array([float(score) for score in case["outputs"]["final_score"]])
    np.testing.assert_allclose(product, expected, rtol=1e-6)
    if case["name"] != "equal_scores":  # their sort is not stable
        finite = [row for row in case["outputs"]["sorted_order"] if np.isfinite(expected[row])]
        ours = np.argsort(-expected[np.isfinite(expected)], kind="stable")
        assert np.flatnonzero(np.isfinite(expected))[ours].tolist() == finite


def test_a_batch_of_their_program_leaves_out_rows_near_rows_that_are_left_out_and_ours_does_not():
    """In one batch theirs compares a row with all earlier ones, which is what semdedup does; ours walks."""
    case = next(case for case in CASES if case["name"] == "whole_set_in_one_batch")
    order, vectors = np.array(case["outputs"]["sorted_order"]), unit(case)
    threshold = case["params"]["threshold"]
    theirs = order[nearest_earlier(vectors[order]) <= threshold]
    assert theirs.tolist() == case["outputs"]["kept_in_order"]
    ours = walked_apart(vectors, order, cosine_above(threshold))
    one_by_one = next(case for case in CASES if case["name"] == "batch_of_one")
    assert ours.tolist() == one_by_one["outputs"]["kept_in_order"]
    assert set(theirs) < set(ours.tolist())


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["params"]["distance_metric"] == "manhattan"], ids=names
)
def test_manhattan_leaves_near_rows_out_where_their_program_leaves_far_ones_out(case):
    distances = np.array(case["outputs"]["similarity_or_distance"])
    threshold, order = case["params"]["threshold"], case["outputs"]["sorted_order"]
    theirs, right = [], []
    for row in order:
        theirs += [row] if not any(distances[row, other] > threshold for other in theirs) else []
        right += [row] if not any(distances[row, other] < threshold for other in right) else []
    assert theirs == case["outputs"]["kept_in_order"]
    assert walked_apart(unit(case), np.array(order), is_near("manhattan", threshold)).tolist() == right != theirs


def test_a_negative_threshold_of_their_program_keeps_one_row_and_ours_is_refused():
    case = next(case for case in CASES if case["name"] == "negative_threshold_keeps_one_quirk")
    assert len(case["outputs"]["kept_in_order"]) == 1
    with pytest.raises(ConfigError, match="a number from 0 to 1"):
        build(TokenRows(4), threshold=case["params"]["threshold"])


# --- the selector


class Scored:
    """Scores of a run, and how often each was asked for."""

    def __init__(self, dataset, **values):
        self.scores = NamedScores(dataset, pad_collate)
        for kind, numbers in values.items():
            self.scores.provide(kind, lambda _, numbers=numbers: np.asarray(numbers, dtype=np.float64))

    def context(self, update, updates=9, model=None):
        self.scores.begin_update(model, 10 * update)
        return UpdateContext(update, updates, 10 * update, 90, 1e-3, None, scores=self.scores)


def build(dataset, **params):
    selector = DeitaSelector(**run_objects(dataset), **params)
    selector.bind("deita", 7)
    return selector


def pick(selector, scored, count, update=0, updates=9, model=None):
    answer = selector.select(model, 10 * update, count, context=scored.context(update, updates, model))
    assert len(answer.scores) == len(set(answer.indices.tolist())) == count
    return answer.indices.tolist()


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """60 rows in 12 groups of five near copies, their vectors, and a score for each row."""
    generator = np.random.default_rng(0)
    middles = generator.standard_normal((12, 16))
    vectors = np.repeat(middles, 5, axis=0) + 0.05 * generator.standard_normal((SIZE, 16))
    folder = tmp_path_factory.mktemp("vectors")
    np.save(folder / "v.npy", vectors)
    rows = TokenRows(SIZE, lengths=range(6, 30))
    values = generator.permutation(SIZE).astype(float)
    return rows, str(folder / "v.npy"), values, np.repeat(np.arange(12), 5)


def test_the_entry_point_leads_to_the_class():
    assert find(SELECTOR, "deita") is DeitaSelector


def test_the_best_of_each_group_comes_and_a_later_update_goes_on(planted):
    rows, file, values, groups = planted
    selector, scored = build(rows, vectors=file, score="column:x"), Scored(rows, column=values)
    best = [row for row in np.argsort(-values).tolist() if values[row] == values[groups == groups[row]].max()]
    assert pick(selector, scored, 5, 0) == best[:5]
    assert pick(selector, scored, 5, 1) == best[5:10]
    again = pick(selector, scored, 5, 2)  # two are left, then the walk begins anew
    assert again[:2] == best[10:]
    assert again[2:] == best[:3]
    assert pick(selector, scored, 5, 3) == best[3:8]


def test_ascending_takes_the_lowest(planted):
    rows, file, values, groups = planted
    selector, scored = build(rows, vectors=file, score="column:x", ascending=True), Scored(rows, column=values)
    assert pick(selector, scored, 12) == [
        row for row in np.argsort(values).tolist() if values[row] == values[groups == groups[row]].min()
    ]


def test_exclude_seen_false_gives_the_same_rows_again(planted):
    rows, file, values, _ = planted
    selector = build(rows, vectors=file, score="column:x", exclude_seen=False)
    scored = Scored(rows, column=values)
    assert pick(selector, scored, 8, 0) == pick(selector, scored, 8, 1)


def test_a_second_training_by_the_same_trainer_does_not_walk_by_the_scores_of_the_first(planted):
    rows, file, values, _ = planted
    selector = build(rows, vectors=file, score="column:worth", exclude_seen=False)
    selector.changes = True  # as losses do
    last = pick(selector, Scored(rows, column=values), 5, update=8)
    first = pick(selector, Scored(rows, column=-values), 5, update=0)
    assert set(first).isdisjoint(last)
    moving = build(rows, embedding="model", refresh=2)
    due = [(last, update) for last in (0, 3) for update in range(5) if moving.is_due(last, update)]
    assert due == [(0, 2), (0, 3), (0, 4), (3, 0), (3, 1), (3, 2)]


def test_too_few_rows_are_an_error_that_says_how_many_there_are(planted):
    rows, file, values, _ = planted
    selector, scored = build(rows, vectors=file, score="column:x"), Scored(rows, column=values)
    with pytest.raises(ComponentError, match=r"13 rows are wanted, and 12 of 60 are left .*above 0.9.*too_few: relax"):
        pick(selector, scored, 13)
    selector = build(rows, vectors=file, score="column:x", metric="manhattan", threshold=1.5)
    with pytest.raises(ComponentError, match=r"distance is below 1.5.*a lower threshold"):
        pick(selector, scored, 13)


@pytest.mark.parametrize("metric", ["cosine", "manhattan"])
def test_relax_takes_the_strict_rows_first_then_looser_ones_and_copies_last(planted, metric, caplog):
    rows, file, values, _ = planted
    threshold = 0.9 if metric == "cosine" else 1.5
    selector = build(rows, vectors=file, score="column:x", metric=metric, threshold=threshold, too_few="relax")
    scored = Scored(rows, column=values)
    with caplog.at_level(logging.WARNING):
        found = pick(selector, scored, SIZE)
    assert sorted(found) == list(range(SIZE)), "in the end every row"
    assert "12 of 60 rows are left at threshold" in caplog.text
    strict = pick(build(rows, vectors=file, score="column:x", metric=metric, threshold=threshold), scored, 12)
    assert found[:12] == strict
    once = [*strict, *walked_apart(
        selector.vectors_of(None, 0), np.array([r for r in np.argsort(-values) if r not in strict]),
        is_near(metric, looser(metric, threshold)), None, np.array(strict),
    ).tolist()]  # fmt: skip
    assert found[: len(once)] == once


def test_scores_are_multiplied_and_a_row_without_one_is_never_taken(planted):
    rows, file, values, _ = planted
    lengths = np.array([len(row["input_ids"]) for row in rows], dtype=float)
    holes = values.copy()
    holes[[3, 17]] = np.nan
    holes[9] = -np.inf
    selector = build(rows, vectors=file, score=["column:x", "length"], threshold=1.0)
    found = pick(selector, Scored(rows, column=holes), SIZE - 3)
    product = np.where(np.isfinite(holes), holes * lengths, -np.inf)
    assert found == np.argsort(-product, kind="stable")[: SIZE - 3].tolist()
    with pytest.raises(ComponentError, match="57 of 60 have a label and a score"):
        pick(selector, Scored(rows, column=holes), SIZE - 2, 1)


def test_score_gives_never_to_the_rows_that_a_walk_leaves_out(planted):
    rows, file, values, groups = planted
    scored = Scored(rows, column=np.where(np.arange(SIZE) == 8, np.nan, values))
    found = build(rows, vectors=file, score="column:x").scores(None, 0, context=scored.context(0))
    assert np.isnan(found[8])
    assert np.isfinite(found).sum() == 12
    for group in range(12):
        own = np.flatnonzero(groups == group)
        kept = own[np.isfinite(found[own])]
        assert len(kept) == 1
        assert found[kept[0]] == np.nanmax(np.where(own == 8, np.nan, values[own]))
    lowest = build(rows, vectors=file, score="column:x", ascending=True).scores(None, 0, context=scored.context(0))
    assert np.isfinite(lowest).sum() == 12
    assert np.nanmax(lowest) <= 0


@pytest.mark.parametrize("embedding", ["ngrams", "model"])
def test_it_walks_over_the_embeddings_of_rows(embedding):
    rows, model = TokenRows(40, lengths=range(6, 30)), tiny_model()
    copies = [*list(rows), *list(rows)[:20]]
    selector, scored = build(copies, embedding=embedding, threshold=0.999), Scored(copies)
    found = pick(selector, scored, 40, model=model)
    lengths = np.array([len(row["input_ids"]) for row in copies])
    assert sorted(found) == list(range(40)), "the first of each two copies"
    assert found == np.argsort(-lengths[:40], kind="stable").tolist()


def test_behind_a_filter_the_file_still_tells_each_row_its_vector(planted):
    rows, file, values, groups = planted
    part = np.array([59, 12, 13, 14, 30, 2, 1])
    view = PlannedRows(list(rows), part)
    selector, scored = build(view, vectors=file, score="column:x"), Scored(view, column=values[part])
    assert len({int(groups[part[row]]) for row in pick(selector, scored, 4)}) == 4
    with pytest.raises(ComponentError, match="4 of 7 are left"):
        pick(build(view, vectors=file, score="column:x"), scored, 5)


@pytest.mark.parametrize("params", [{}, {"embedding": "model", "refresh": 2}, {"score": "loss"}])
def test_a_resumed_walk_goes_on_where_it_was(params):
    rows, model = TokenRows(50, lengths=range(6, 30)), tiny_model()
    params = {"threshold": 0.97, "too_few": "relax"} | params
    through, scored = build(rows, **params), Scored(rows)
    picks, states = [], []
    for update in range(6):
        states.append(through.state_dict())
        picks.append(pick(through, scored, 7, update, 6, model))
    for begin in range(6):
        resumed = build(rows, **params)
        resumed.load_state_dict(states[begin])
        assert [pick(resumed, scored, 7, update, 6, model) for update in range(begin, 6)] == picks[begin:]


def test_other_vectors_than_before_are_refused_at_a_resume(planted, tmp_path):
    rows, file, _values, _ = planted
    state = build(rows, vectors=file, score="column:x").state_dict()
    np.save(tmp_path / "w.npy", np.load(file) + 1)
    with pytest.raises(CheckpointError, match="other vectors than when the checkpoint"):
        build(rows, vectors=str(tmp_path / "w.npy"), score="column:x").load_state_dict(state)


def test_rows_without_a_label_are_never_taken(planted):
    rows, file, values, _ = planted
    dataset = [row | {"labels": [-100] * len(row["labels"])} if i % 3 else row for i, row in enumerate(rows)]
    selector, scored = build(dataset, vectors=file, score="column:x", threshold=1.0), Scored(dataset, column=values)
    assert sorted(pick(selector, scored, 20)) == list(range(0, 60, 3))


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"score": "lenght"}, "length"),
        ({"score": ["length", "reward:spread"]}, "found 'reward:spread', which prompts have"),
        ({"score": []}, r"score .*found \[\]"),
        ({"score": ["length", 3]}, "a name of scores, or a list"),
        ({"score": "file:nowhere.npy"}, "there is no such file"),
        ({"metric": "euclid"}, "cosine, manhattan"),
        ({"threshold": 1.5}, "a number from 0 to 1"),
        ({"metric": "manhattan", "threshold": -1}, "at least 0"),
        ({"too_few": "fill"}, "error, relax"),
        ({"vectors": "nowhere.npy"}, "there is no such file"),
        ({"exclude_seen": 1}, "true, false"),
        ({"embedding": "ngram"}, "ngrams"),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(params, said):
    with pytest.raises(ConfigError, match=said):
        build(TokenRows(4), **params)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError) as raised:
        build(TokenRows(4), metric="l2", too_few="x", score="nothing", dim=0)
    assert all(key in str(raised.value) for key in ("metric", "too_few", "score", "dim"))


def test_names_of_scores_say_what_the_run_must_keep():
    selector = build(TokenRows(4), score=["column:quality", "seen"])
    assert DeitaSelector.needs_columns({"score": ["column:quality", "length"]}) == ("quality",)
    assert DeitaSelector.needs_columns({}) == ()
    assert selector.takes_seen
    assert not build(TokenRows(4)).takes_seen
    assert score_problems("length") == [None]


def test_a_loss_as_a_score_is_tried_on_batches_before_the_first_step():
    tried, rows = [], TokenRows(20, lengths=range(6, 26))
    for score in ("length", "seen", "loss", "seen:5"):
        selector = build(rows, score=score)
        selector.data_collator = lambda given: tried.append(len(given)) or pad_collate(given)
        tried.clear()
        selector.check_run(tiny_model(), RunAhead(1, 9, 4, 4))
        assert bool(tried) == selector.reads_batches == (score in ("loss", "seen:5"))


@pytest.mark.parametrize("score", ["length", "loss"])
def test_scores_that_nobody_shares_are_made_by_itself(score):
    rows, model = TokenRows(20, lengths=range(6, 30)), tiny_model()
    alone = build(rows, score=score, threshold=1.0)
    found = alone.select(model, 0, 9, context=UpdateContext(0, 9, 0, 90, 1e-3, None)).indices
    assert found.tolist() == pick(build(rows, score=score, threshold=1.0), Scored(rows), 9, model=model)
