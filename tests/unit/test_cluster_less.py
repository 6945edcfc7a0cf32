"""cluster_less scores a few rows of each cluster, spreads what it finds, and survives a resume."""

from __future__ import annotations

import numpy as np
import pytest
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.testing import TokenRows, pad_collate
from dataflex_selectors.cluster_less import ClusterLessSelector
from dataflex_selectors.less import LessSelector
from every_component import run_objects
from test_gradients import lora

GROUPS, EACH = 8, 24


def family(group: int, count: int, seed: int) -> list[dict[str, list[int]]]:
    """Rows of a few tokens of the group's own, so that both wording and gradients tell groups apart."""
    rows = [TokenRows(count, vocab_size=9, lengths=12, seed=seed)[i] for i in range(count)]
    for row in rows:
        row["input_ids"] = [token + 6 * group for token in row["input_ids"]]
        row["labels"] = [-100 if label == -100 else label + 6 * group for label in row["labels"]]
    return rows


@pytest.fixture(scope="module")
def rows():
    return [row for group in range(GROUPS) for row in family(group, EACH, seed=group)]


@pytest.fixture(scope="module")
def target():
    return family(2, 5, seed=99)


@pytest.fixture(scope="module")
def model():
    return lora()


class Counting:
    """A collator that counts the rows it is given."""

    def __init__(self):
        self.rows = 0

    def __call__(self, rows):
        self.rows += len(rows)
        return pad_collate(rows)


def selector(rows, target, tmp_path, collator=pad_collate, **params) -> ClusterLessSelector:
    defaults = {"token_budget": 240, "gradient_type": "sgd", "clusters": 2 * GROUPS}
    made = ClusterLessSelector(**run_objects(rows, target, None, collator, tmp_path), **(defaults | params))
    made.bind("cluster_less", 7)
    return made


def context(update: int, rate: float = 1e-3) -> UpdateContext:
    return UpdateContext(update, 5, 10 * (update + 1), 60, rate, None)


def less_scores(model, rows, target, tmp_path) -> np.ndarray:
    made = LessSelector(**run_objects(rows, target, folder=tmp_path), gradient_type="sgd", token_budget=240)
    made.bind("less", 7)
    return made.scores(model, 10, context=context(0))


@pytest.mark.parametrize("budget", ["even", "ucb"])
@pytest.mark.parametrize(("clusters", "representatives"), [(16, 4), (12, 2), (3, 4)])
def test_few_rows_are_scored(model, rows, target, tmp_path, budget, clusters, representatives):
    collator = Counting()
    made = selector(rows, target, tmp_path, collator, clusters=clusters, representatives=representatives, budget=budget)
    made.select(model, 10, 20, context=context(0))
    assert collator.rows - len(target) <= clusters * representatives
    assert collator.rows - len(target) >= clusters * representatives * 0.75  # clusters may be smaller than their share


def test_by_default_a_sixteenth_of_the_rows_is_scored(model, target, tmp_path):
    many = TokenRows(640, vocab_size=64, lengths=range(4, 12), seed=4)
    collator = Counting()
    made = selector(many, target, tmp_path, collator, clusters=None)
    made.select(model, 10, 20, context=context(0))
    assert collator.rows == 640 // 16 + len(target)


@pytest.mark.parametrize("budget", ["even", "ucb"])
@pytest.mark.parametrize("mode", ["topk", "sample", "quota"])
def test_the_group_of_the_target_is_found(model, rows, target, tmp_path, budget, mode):
    made = selector(rows, target, tmp_path, budget=budget, mode=mode, temperature=0.2)
    found = made.select(model, 10, 12, context=context(0))
    assert len(set(found.indices)) == 12
    assert np.mean(np.asarray(found.indices) // EACH == 2) > 4 / GROUPS
    assert (np.diff(found.scores) <= 0).all() or mode == "sample"


def test_where_every_row_is_a_representative_it_is_less(model, rows, target, tmp_path):
    made = selector(rows, target, tmp_path, representatives=len(rows))
    exact = less_scores(model, rows, target, tmp_path)
    np.testing.assert_allclose(made.scores(model, 10, context=context(0)), exact, rtol=1e-4, atol=1e-6)


def test_smoothed_scores_follow_those_of_less(model, rows, target, tmp_path):
    made = selector(rows, target, tmp_path, clusters=24)
    found, exact = made.scores(model, 10, context=context(0)), less_scores(model, rows, target, tmp_path)
    assert np.corrcoef(found, exact)[0, 1] > 0.7
    assert len(np.unique(found)) > 0.9 * len(rows)  # no cluster is one tie


def test_ucb_scores_more_rows_of_the_better_clusters(model, rows, target, tmp_path):
    made = selector(rows, target, tmp_path, budget="ucb", representatives=6, clusters=GROUPS)
    scored = []
    inner = made._scored

    def noted(*args):
        scored.append(inner(*args))
        return scored[-1]

    made._scored = noted
    made.select(model, 10, 12, context=context(0))
    numbers = scored[0][0]
    assert len(numbers) == len(set(numbers)) == 6 * GROUPS
    assert np.mean(numbers // EACH == 2) > 1.5 / GROUPS


def test_representatives_stay_unless_resampled(model, rows, target, tmp_path):
    fixed, moving = (selector(rows, target, tmp_path, resample=r, decay=0.0) for r in (False, True))
    same = [fixed.scores(model, 10, context=context(update)) for update in (0, 1)]
    np.testing.assert_array_equal(*same)
    other = [moving.scores(model, 10, context=context(update)) for update in (0, 1)]
    assert not np.array_equal(*other)


@pytest.mark.parametrize("params", [{}, {"embedding": "model", "refresh": 3, "budget": "ucb"}, {"resample": True}])
def test_a_resumed_run_goes_on_as_the_whole_one(rows, target, tmp_path, params):
    first, second = lora(), lora()
    whole = selector(rows, target, tmp_path, **params)
    whole.select(first, 10, 12, context=context(0, rate=2e-3))
    again = selector(rows, target, tmp_path, **params)
    again.load_state_dict(whole.state_dict())
    expected = whole.select(second, 20, 12, context=context(1))
    found = again.select(second, 20, 12, context=context(1))
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_vectors_that_can_be_looked_up_are_not_in_the_checkpoint(model, rows, target, tmp_path):
    still, moving = selector(rows, target, tmp_path), selector(rows, target, tmp_path, embedding="model")
    for made in (still, moving):
        made.select(model, 10, 12, context=context(0))
    assert still.state_dict()["clustering"]["vectors"] is None
    assert len(moving.state_dict()["clustering"]["vectors"]) == len(rows)


def test_rows_without_labels_are_never_taken(model, rows, target, tmp_path):
    some = [dict(row) for row in rows]
    for row in some[::2]:
        row["labels"] = [-100] * len(row["labels"])
    made = selector(some, target, tmp_path)
    assert (np.asarray(made.select(model, 10, 96, context=context(0)).indices) % 2 == 1).all()
    assert np.isnan(made.scores(model, 10, context=context(1))[::2]).all()
    with pytest.raises(ComponentError, match="97 rows are wanted, but only 96 of 192 have a label"):
        made.select(model, 10, 97, context=context(2))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"clusters": 0}, "clusters of the cluster_less selector"),
        ({"representatives": 0}, "representatives of the cluster_less selector"),
        ({"budget": "greedy"}, "budget of the cluster_less selector"),
        ({"width": 0}, "width of the cluster_less selector"),
        ({"mode": "best"}, "mode of the cluster_less selector"),
        ({"embedding": "ngram"}, "did you mean 'ngrams'"),
    ],
)
def test_bad_parameters_are_named(params, words, rows, target, tmp_path):
    with pytest.raises(ConfigError, match=words):
        selector(rows, target, tmp_path, **params)


def test_as_many_clusters_as_rows_are_told_as_they_cost_what_less_costs(model, rows, target, tmp_path, caplog):
    for clusters, told in ((len(rows) - 1, False), (len(rows), True)):
        selector(rows, target, tmp_path, clusters=clusters).check_run(model, RunAhead(1, 10, 8))
        assert ("so each is a cluster by itself and all rows are scored" in caplog.text) == told
