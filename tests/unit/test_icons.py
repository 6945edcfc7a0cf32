"""ICONS votes as its authors' program does, on the influence that LESS computes, and says what is equal by one rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from dataflex.config.checks.enough_rows import rows_kept
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.kinds import SELECTOR
from dataflex.discovery.component_classes import find
from dataflex.scoring import read_target
from dataflex.testing import TokenRows
from dataflex_selectors.icons import IconsSelector, consensus, mean_over_rows, threshold, vote_counts
from dataflex_selectors.less import LessSelector
from dataflex_selectors.parts.ranking import first_places
from dataflex_selectors.parts.task_sets import groups_problem, split, task_places, task_scores
from every_component import run_objects
from golden_numbers import golden_cases
from rank_group import on_ranks, one_thread
from test_gradients import all_at_once, lora
from test_influence import explicit, unit

GOLDEN = {case["name"]: case for case in golden_cases("icons")}
GENERALIST = [name for name, case in GOLDEN.items() if case["kind"] == "official_generalist"]
DATAFLEX = [name for name, case in GOLDEN.items() if case["kind"] == "dataflex_vote_select"]
SPECIALIST = [name for name, case in GOLDEN.items() if case["kind"] == "official_specialist_mean_topk"]
QUIRKS = {"k_zero_selects_all_quirk": 0, "percent_rounding_down": 29}
"""Cases in which the authors' k is wrong -> how many rows P percent of them are."""


def case_of(name: str) -> tuple[dict, dict, dict]:
    return GOLDEN[name]["inputs"], GOLDEN[name]["params"], GOLDEN[name]["outputs"]


def influence(task: dict) -> np.ndarray:
    """The influence matrix of one task or sub-task: rows times validation items."""
    if "influence" in task:
        return np.array(task["influence"])
    return np.array(task["train_gradients"]) @ np.array(task["validation_gradients"]).T


def scores_of(tasks: list[dict]) -> np.ndarray:
    """Scores for each task through the selector's own steps: a mean for each set, then the highest of a group."""
    sets, groups = {}, {}
    for task in tasks:
        subtasks = task.get("mme_subtasks")
        if subtasks is None:
            sets[task["name"]] = influence(task).mean(axis=1)
            continue
        named = subtasks.items() if isinstance(subtasks, dict) else enumerate(subtasks)
        groups[task["name"]] = []
        for key, own in named:
            matrix = np.array(own) if isinstance(own, list) else influence(own)
            sets[f"{task['name']} {key}"] = matrix.mean(axis=1)
            groups[task["name"]].append(f"{task['name']} {key}")
    return task_scores(np.stack(list(sets.values()), axis=1), task_places(list(sets), groups))


def require_choice(chosen: list[int], votes: np.ndarray, outputs: dict) -> None:
    """Asserts that rows above the boundary are chosen, and of those at it as many as are missing."""
    above, tied = outputs["rows_above_boundary"], outputs["rows_tied_at_boundary"]
    assert set(above) <= set(chosen)
    assert set(chosen) <= set(above) | set(tied)
    assert len(set(chosen)) == len(above) + outputs["picked_from_tied"]
    if outputs["selection_unique"]:
        assert sorted(chosen) == outputs["selected_sorted"]


@pytest.mark.parametrize("name", GENERALIST)
def test_the_authors_program_gives_the_same_thresholds_votes_and_rows(name):
    inputs, params, outputs = case_of(name)
    tolerance = 1e-6 if GOLDEN[name]["dtype"] == "float32" else 1e-8
    scores_NK, share = scores_of(inputs["tasks"]), params["top_percent"] / 100
    np.testing.assert_allclose(scores_NK, outputs["mean_scores"], rtol=tolerance, atol=tolerance)
    found = [threshold(column, share) for column in scores_NK.T]
    np.testing.assert_allclose(found, outputs["thresholds"], rtol=tolerance, atol=tolerance)
    votes_N, means_N = consensus(scores_NK, share)
    assert votes_N.tolist() == outputs["votes"]
    if name not in QUIRKS:
        require_choice(first_places(outputs["k"], -votes_N, -means_N).tolist(), votes_N, outputs)


@pytest.mark.parametrize("name", DATAFLEX)
def test_opendcais_form_gives_the_same_influence_thresholds_votes_and_rows(name):
    inputs, params, outputs = case_of(name)
    matrix = np.array(inputs["train_gradients"]) @ np.array(inputs["eval_gradients"]).T
    sizes = inputs["task_boundaries"] or [matrix.shape[1]]
    scores_NK = np.stack([part.mean(axis=1) for part in np.split(matrix, np.cumsum(sizes)[:-1], axis=1)], axis=1)
    np.testing.assert_allclose(scores_NK.T, outputs["task_influence"], rtol=1e-8, atol=1e-9)
    share = params["num_samples"] / len(matrix)
    np.testing.assert_allclose([threshold(own, share) for own in scores_NK.T], outputs["thresholds"], rtol=1e-8)
    votes_N, means_N = consensus(scores_NK, share)
    assert votes_N.tolist() == outputs["votes"]
    require_choice(first_places(params["num_samples"], -votes_N, -means_N).tolist(), votes_N, outputs)


@pytest.mark.parametrize("name", SPECIALIST)
def test_the_authors_specialist_program_is_the_mean_over_all_target_rows(name):
    inputs, params, outputs = case_of(name)
    matrices = [np.array(matrix) for matrix in inputs["influence_matrices"]]
    means_NJ = np.stack([matrix.mean(axis=1) for matrix in matrices], axis=1)
    found_N = mean_over_rows(means_NJ, [matrix.shape[1] for matrix in matrices])
    count = params["max_samples"] or int(params["percentage"] * len(found_N))
    assert first_places(count, -found_N).tolist() == outputs["selected_best_first"]


def test_no_golden_case_is_left_out():
    assert len(GENERALIST) + len(DATAFLEX) + len(SPECIALIST) == len(GOLDEN) == 20


# --- what is wrong in the authors' program, done right


def test_none_asked_for_is_none_chosen_where_the_authors_slice_gives_every_row():
    inputs, params, outputs = case_of("k_zero_selects_all_quirk")
    votes_N, means_N = consensus(scores_of(inputs["tasks"]), params["top_percent"] / 100)
    assert len(outputs["selected_sorted"]) == len(votes_N)
    assert first_places(0, -votes_N, -means_N).tolist() == []


def test_29_percent_of_100_rows_are_29_rows_where_the_authors_have_28():
    inputs, params, outputs = case_of("percent_rounding_down")
    scores_NK = scores_of(inputs["tasks"])
    assert (outputs["k"], rows_kept(params["top_percent"] / 100, len(scores_NK))) == (28, 29)
    votes_N, means_N = consensus(scores_NK, params["top_percent"] / 100)
    chosen = first_places(29, -votes_N, -means_N).tolist()
    assert set(outputs["rows_above_boundary"]) <= set(chosen)
    assert votes_N[chosen].min() >= votes_N[np.setdiff1d(np.arange(len(votes_N)), chosen)].max()


def test_a_row_without_a_score_takes_no_vote_from_the_others():
    scores_NK = np.array([[3.0, 1.0], [np.nan, 4.0], [2.0, 2.0], [1.0, 3.0]])
    assert vote_counts(scores_NK, 0.5).tolist() == [1, 1, 1, 1]
    assert np.isnan(np.quantile(scores_NK[:, 0], 0.5))  # the authors' threshold, with which nobody has a vote
    assert vote_counts(np.full((3, 2), np.nan), 0.5).tolist() == [0, 0, 0]


@pytest.mark.parametrize("rows", [11, 101, 1001, 5001])
@pytest.mark.parametrize("percent", range(1, 101))
def test_a_threshold_that_falls_on_a_row_is_that_rows_score(rows, percent):
    """(M - 1)(1 - P) is a whole number in decimals, and a hair off in binary: the row itself must have its vote."""
    if (rows - 1) * percent % 100:
        return
    scores_M = np.linspace(0.1, 0.9, rows) ** 3
    wanted = (rows - 1) * percent // 100 + 1
    assert int((scores_M >= threshold(scores_M, percent / 100)).sum()) == wanted


def test_thresholds_are_numpys_quantiles():
    generator = np.random.default_rng(3)
    for size in (1, 2, 3, 7, 100):
        for share in (0.01, 0.2, 0.425, 0.5, 0.99, 1.0):
            scores_M = generator.normal(size=size)
            assert threshold(scores_M, share) == pytest.approx(np.quantile(scores_M, 1 - share), rel=1e-9, abs=1e-12)


def test_of_equal_votes_the_higher_mean_influence_decides_and_then_the_row():
    scores_NK = np.array([[0.9, 0.0], [0.8, 0.0], [0.0, 0.7], [0.0, 0.9], [0.0, 0.0], [0.9, 0.0]])
    votes_N, means_N = consensus(scores_NK, 0.2)
    assert votes_N.tolist() == [1, 0, 1, 1, 0, 1]  # 0.9 twice, and the two highest of the other task
    assert first_places(5, -votes_N, -means_N).tolist() == [0, 3, 5, 2, 1]


# --- tasks


def test_sets_are_tasks_and_groups_of_sets_are_one_task_with_the_highest_score():
    assert task_places(["a", "b", "c", "d"], {"mme": ["b", "d"]}) == [[0], [1, 3], [2]]
    assert task_places(["mme", "b"], {"mme": ["b"]}) == [[0], [1]]
    scores_NJ = np.array([[1.0, 2.0, 3.0, 5.0], [4.0, 3.0, 2.0, 1.0]])
    assert task_scores(scores_NJ, [[0], [1, 3], [2]]).tolist() == [[1.0, 5.0, 3.0], [4.0, 3.0, 2.0]]


def test_boundaries_count_the_rows_as_the_evaluation_set_was_given():
    rows = [TokenRows(6, lengths=8)[i] for i in range(6)]
    rows[1]["labels"] = [-100] * 8  # left out, so the second task begins one row earlier
    parts = split(read_target(rows).sets, [3, 3])
    assert {name: [row["input_ids"] for row in own] for name, own in parts.items()} == {
        "task 0": [rows[0]["input_ids"], rows[2]["input_ids"]],
        "task 1": [row["input_ids"] for row in rows[3:]],
    }


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"vote_share": 0}, "vote_share of the icons selector: found 0, allowed: a number above 0 and at most 1"),
        ({"vote_share": 1.5}, "vote_share of the icons selector"),
        ({"combine": "vote"}, "combine of the icons selector: found 'vote', allowed: votes, mean"),
        ({"combine": "mean", "vote_share": 0.2}, "vote_share of the icons selector: found 0.2 beside combine: mean"),
        ({"combine": "mean", "task_groups": {"a": ["eval"]}}, "task_groups of the icons selector: .* counts no votes"),
        ({"decay": 2}, "decay of the icons selector"),
        ({"gradient_type": "adamw"}, "gradient_type of the icons selector"),
        ({"candidates": 0}, "candidates of the icons selector"),
        (
            {"task_boundaries": [6, 3]},
            r"task_boundaries of the icons selector: the sizes sum to 9, .*'eval' has 6 rows",
        ),
        ({"task_boundaries": []}, r"task_boundaries of the icons selector: found \[\], allowed: a list"),
        ({"task_boundaries": [3, 2.5]}, "task_boundaries of the icons selector"),
        ({"task_groups": {"mme": []}}, "task_groups of the icons selector: found .*allowed: a mapping"),
        ({"task_groups": {"mme": ["evil"]}}, r"task_groups of the icons selector: found evil, allowed: .*eval"),
        ({"task_groups": {"a": ["eval"], "b": ["eval"]}}, "eval stands there twice"),
    ],
)
def test_bad_parameters_are_named(params, words, rows, target, tmp_path):
    with pytest.raises(ConfigError, match=words):
        selector(rows, target, tmp_path, **params)


def test_boundaries_beside_several_sets_are_refused(rows, target, tmp_path):
    with pytest.raises(ConfigError, match=r"task_boundaries .*there are 2: a, b -> leave it out"):
        selector(rows, {"a": target, "b": target}, tmp_path, task_boundaries=[3, 3])


def test_a_part_without_a_label_is_refused(rows, tmp_path):
    target = [TokenRows(4, lengths=8)[i] for i in range(4)]
    target[3]["labels"] = [-100] * 8
    with pytest.raises(ConfigError, match=r"task_boundaries .*no row of task 1 has a token with a label"):
        selector(rows, target, tmp_path, task_boundaries=[3, 1])


def test_no_evaluation_set_is_refused(rows, tmp_path):
    with pytest.raises(ConfigError, match=r"no evaluation set.*val_size"):
        selector(rows, None, tmp_path)


def test_groups_are_checked_before_the_sets_are_known():
    assert groups_problem({"mme": "a"}) is not None
    assert groups_problem({"mme": ["a"]}) is None


# --- the selector


def selector(dataset, target, tmp_path, accelerator=None, **params) -> IconsSelector:
    objects = run_objects(dataset, target, accelerator, folder=tmp_path)
    made = IconsSelector(**objects, **{"token_budget": 64, "gradient_type": "sgd"} | params)
    made.bind("icons", 7)
    return made


def context(update: int = 0, rate: float = 1e-3) -> UpdateContext:
    return UpdateContext(update, 5, 10 * (update + 1), 60, rate, None)


@pytest.fixture(scope="module")
def rows() -> TokenRows:
    return TokenRows(20, vocab_size=64, lengths=range(4, 16), seed=2)


@pytest.fixture(scope="module")
def target() -> TokenRows:
    return TokenRows(6, vocab_size=64, lengths=range(4, 16), seed=3)


@pytest.fixture(scope="module")
def tasks() -> dict[str, TokenRows]:
    return {
        name: TokenRows(size, vocab_size=64, lengths=range(4, 16), seed=seed)
        for seed, (name, size) in enumerate({"a": 6, "b": 3, "c": 4, "d": 5}.items(), start=11)
    }


@pytest.fixture(scope="module")
def model():
    return lora()


def cosines(model, rows, target) -> np.ndarray:
    return (unit(explicit(all_at_once(model, rows))) @ unit(explicit(all_at_once(model, target))).mean(0)).cpu().numpy()


def by_hand(scores_NK: np.ndarray, count: int, share: float) -> list[int]:
    """The oracle: thresholds by sorting, votes one by one, ties by the mean."""
    votes = [
        sum(float(row[k]) >= np.quantile(scores_NK[:, k], 1 - share) for k in range(scores_NK.shape[1]))
        for row in scores_NK
    ]
    return sorted(range(len(votes)), key=lambda i: (-votes[i], -scores_NK[i].mean(), i))[:count]


def test_the_entry_point_leads_to_the_class():
    assert find(SELECTOR, "icons") is IconsSelector


@pytest.mark.parametrize("share", [None, 0.3])
@pytest.mark.parametrize("groups", [None, {"mme": ["b", "d"]}])
def test_rows_with_most_votes_are_taken(model, rows, tasks, tmp_path, share, groups):
    scores_NJ = np.stack([cosines(model, rows, own) for own in tasks.values()], axis=1)
    scores_NK = scores_NJ if groups is None else np.stack([scores_NJ[:, own].max(1) for own in ([0], [1, 3], [2])], 1)
    made = selector(rows, tasks, tmp_path, vote_share=share, task_groups=groups)
    found = made.select(model, 10, 6, context=context())
    assert list(found.indices) == by_hand(scores_NK, 6, share or 6 / 20)
    votes_N, means_N = consensus(scores_NK, share or 6 / 20)
    np.testing.assert_allclose(found.scores, (votes_N + means_N / 2)[found.indices], atol=1e-6)
    assert np.round(found.scores).tolist() == votes_N[found.indices].tolist()
    assert (np.diff(found.scores) <= 0).all()
    np.testing.assert_allclose(found.candidates[1], votes_N + means_N / 2, atol=1e-6)


@pytest.mark.parametrize(("several", "said"), [(False, 1), (True, 0)])
def test_evaluation_rows_that_are_one_task_are_told(rows, target, tasks, tmp_path, caplog, several, said):
    selector(rows, tasks if several else target, tmp_path)
    assert caplog.text.count("one task, so there is no vote") == said
    assert caplog.text.count("set eval_on_each_dataset: true") == said


def test_one_task_takes_the_rows_of_less(model, rows, target, tmp_path):
    less = LessSelector(**run_objects(rows, target, folder=tmp_path), gradient_type="sgd", decay=0.0, token_budget=64)
    less.bind("less", 7)
    expected = less.select(model, 10, 5, context=context()).indices
    assert list(selector(rows, target, tmp_path).select(model, 10, 5, context=context()).indices) == list(expected)


def test_the_mean_weighs_tasks_by_their_rows(model, rows, tasks, tmp_path):
    joined = [own[i] for own in tasks.values() for i in range(len(own))]
    expected = cosines(model, rows, joined)
    found = selector(rows, tasks, tmp_path, combine="mean").select(model, 10, 6, context=context())
    assert list(found.indices) == list(np.argsort(-expected)[:6])
    np.testing.assert_allclose(found.scores, np.sort(expected)[::-1][:6], rtol=1e-4)


def test_parts_of_one_set_are_the_tasks_that_sets_are(model, rows, tasks, tmp_path):
    joined = [own[i] for own in tasks.values() for i in range(len(own))]
    apart = selector(rows, tasks, tmp_path).select(model, 10, 6, context=context())
    parts = selector(rows, joined, tmp_path, task_boundaries=[6, 3, 4, 5])
    found = parts.select(model, 10, 6, context=context())
    assert list(found.indices) == list(apart.indices)
    np.testing.assert_allclose(found.scores, apart.scores, atol=1e-6)


def test_scores_have_a_fifth_of_the_rows_where_none_are_asked_for(model, rows, tasks, tmp_path):
    scores_NK = np.stack([cosines(model, rows, own) for own in tasks.values()], axis=1)
    votes_N, means_N = consensus(scores_NK, 0.2)
    found = selector(rows, tasks, tmp_path).scores(model, 10, context=context())
    np.testing.assert_allclose(found, votes_N + means_N / 2, atol=1e-6)


def test_former_updates_are_forgotten_unless_decay_keeps_them_and_are_restored(rows, tasks, tmp_path):
    first, second = lora(), lora()
    for parameter in second.parameters():
        parameter.data += 0.02
    made = {decay: selector(rows, tasks, tmp_path, decay=decay) for decay in (0.0, 0.5)}
    for each in made.values():
        each.select(first, 10, 4, context=context(0, rate=2e-3))
    again = selector(rows, tasks, tmp_path, decay=0.5)
    again.load_state_dict(made[0.5].state_dict())
    a, b = (np.stack([cosines(m, rows, own) for own in tasks.values()], axis=1) for m in (first, second))
    both = (0.5 * 2e-3 * a + 1e-3 * b) / (0.5 * 2e-3 + 1e-3)
    for decay, scores_NK in ((0.0, b), (0.5, both)):
        found = made[decay].select(second, 20, 4, context=context(1))
        assert list(found.indices) == by_hand(scores_NK, 4, 4 / 20), decay
    restored = again.select(second, 20, 4, context=context(1))
    np.testing.assert_array_equal(restored.scores, found.scores)
    np.testing.assert_array_equal(restored.indices, found.indices)


def test_rows_without_a_label_are_not_taken_nor_counted(model, tasks, tmp_path):
    rows = [TokenRows(8, vocab_size=64, seed=5)[i] for i in range(8)]
    for row in (rows[2], rows[5]):
        row["labels"] = [-100] * len(row["labels"])
    made = selector(rows, tasks, tmp_path)
    found = made.select(model, 10, 6, context=context())
    assert sorted(found.indices) == [0, 1, 3, 4, 6, 7]
    assert found.scores.round().tolist() == [4.0] * 6  # of the 6 rows with a label all are asked for: each task votes
    with pytest.raises(ComponentError, match="7 rows are wanted, but only 6 of 8 have a score"):
        made.select(model, 10, 7, context=context())
    with pytest.raises(ComponentError, match="7 rows are wanted, but only 6 of 8 have a label"):
        made.check_run(model, RunAhead(1, 2, 7))


def test_all_rows_may_be_asked_for_and_one_row_may_be_all(model, rows, tasks, tmp_path):
    found = selector(rows, tasks, tmp_path).select(model, 10, 20, context=context())
    assert sorted(found.indices) == list(range(20))
    assert found.scores.round().tolist() == [4.0] * 20
    alone = [rows[3]]
    assert list(selector(alone, tasks, tmp_path).select(model, 10, 1, context=context()).indices) == [0]


def test_candidates_are_drawn_afresh(model, rows, tasks, tmp_path):
    made = selector(rows, tasks, tmp_path, candidates=8)
    assert len({tuple(sorted(made.select(model, 10, 8, context=context(u)).indices)) for u in range(3)}) == 3


def test_it_says_which_target_rows_pull_a_row(model, rows, tasks, tmp_path):
    made = selector(rows, tasks, tmp_path)
    explaining = UpdateContext(0, 5, 10, 60, 1e-3, None, explains=True)
    found = made.select(model, 10, 3, context=explaining)
    why = made.explain(model, np.asarray(found.indices[:2]), 10, context=explaining)
    scores_NJ = np.stack([cosines(model, rows, own) for own in tasks.values()], axis=1)
    np.testing.assert_allclose(why.scores, scores_NJ[found.indices[:2]].max(axis=1), atol=1e-6)


def test_it_names_rows_by_the_evaluation_set_whose_parts_are_the_tasks(model, rows, target, tmp_path):
    explaining = UpdateContext(0, 5, 10, 60, 1e-3, None, explains=True)
    found = []
    for params in ({"task_boundaries": [2, 4]}, {}):
        made = selector(rows, target, tmp_path, **params)
        made.select(model, 10, 3, context=explaining)
        found.append(made.explain(model, np.arange(20), 10, context=explaining))
    parts, whole = found
    assert {pull.set for pulls in parts.pulls for pull in pulls} == {"eval"}
    assert {pull.target for pulls in parts.pulls for pull in pulls} == set(range(6))
    assert parts.targets == {key: whole.targets.get(key, tokens) for key, tokens in parts.targets.items()}
    assert set(parts.targets) & set(whole.targets)


def work(accelerator, folder):
    """Rows of two updates on a rank."""
    sets = {name: TokenRows(5, vocab_size=64, lengths=range(4, 16), seed=seed) for seed, name in enumerate("abc")}
    made = selector(TokenRows(20, vocab_size=64, lengths=range(4, 16), seed=2), sets, folder, accelerator)
    torch.manual_seed(0)
    model = lora()
    return {str(u): np.asarray(made.select(model, 10, 6, context=context(u)).indices) for u in range(2)}


def test_two_ranks_vote_as_one_does(tmp_path):
    with one_thread():
        alone = work(Accelerator(cpu=True), tmp_path)
    for found in on_ranks(work, 2, tmp_path):
        assert {key: own.tolist() for key, own in found.items()} == {key: own.tolist() for key, own in alone.items()}
