"""Each component that explains itself names the right target rows: its shares are those of slow and obvious sums."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from dataflex.core.context import UpdateContext
from dataflex.core.explain import MOST_PULLS, largest_shares, sampled_targets
from dataflex.core.kinds import SELECTOR
from dataflex.scoring import step_features
from dataflex.scoring.gradients import kept_targets
from dataflex.testing import TokenRows, pad_collate, tiny_batch, tiny_model, tiny_tokenizer
from dataflex_selectors.cluster_less import ClusterLessSelector
from dataflex_selectors.less import LessSelector
from dataflex_selectors.near import NearSelector
from dataflex_selectors.parts import gradient_scores, to_target, transport
from dataflex_selectors.parts.transport import largest_givers
from dataflex_selectors.tsds import TsdsSelector
from dataflex_weighters import adapt
from every_component import asking_for, made, run_objects
from hypothesis import given
from hypothesis import strategies as st
from test_adapt import phi
from test_gradients import all_at_once, lora
from test_influence import explicit, unit
from test_nice_selector import build, expected_scores
from weighted_run import weighted

ROWS = TokenRows(20, vocab_size=64, lengths=range(4, 16), seed=2)
TARGET = TokenRows(6, vocab_size=64, lengths=range(4, 16), seed=3)
SOME = np.array([3, 0, 17, 5], dtype=np.int64)


def context(update=0, optimizer=None, explains=True) -> UpdateContext:
    return UpdateContext(update, 5, 10 * (update + 1), 60, 1e-3, optimizer, explains=explains)


def trained():
    """A LoRA model and its optimizer after a few steps."""
    model = lora()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for seed in range(3):
        model(**tiny_batch([TokenRows(4, vocab_size=64, seed=seed)[i] for i in range(4)])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def built(cls, folder, target=TARGET, **params):
    selector = cls(**run_objects(ROWS, target, folder=folder), **params)
    selector.bind("it", 7)
    return selector


def explained(selector, model, rows=SOME, optimizer=None, update=0, count=6):
    given = context(update, optimizer)
    answer = selector.select(model, given.step, count, context=given)
    return answer, selector.explain(model, rows, given.step, context=given)


def require_shares(found, terms_MS, numbers, name="eval", rel=1e-3):
    """The pulls are those of the terms: the right target rows in the right order, with the right shares."""
    totals_S = terms_MS.sum(axis=0)
    np.testing.assert_allclose(found.scores, totals_S, rtol=rel, atol=1e-6)
    for terms_M, total, pulls in zip(terms_MS.T, totals_S, found.pulls, strict=True):
        shares = terms_M / total
        best = np.argsort(-shares, kind="stable")[:MOST_PULLS]
        assert [(pull.set, pull.target) for pull in pulls] == [(name, numbers[place]) for place in best]
        assert [pull.share for pull in pulls] == pytest.approx(shares[best].tolist(), rel=rel, abs=1e-5)
    named = {(pull.set, pull.target) for pulls in found.pulls for pull in pulls}
    assert found.targets.keys() == named


# --- shares


def test_shares_are_of_the_sum_and_the_largest_come_first():
    assert largest_shares(np.array([1.0, 3.0, -2.0, 3.0]), 5.0) == [(1, 0.6), (3, 0.6), (0, 0.2)]


def test_of_a_negative_score_the_most_negative_terms_come_first():
    assert largest_shares(np.array([1.0, -3.0, -2.0]), -4.0, most=2) == [(1, 0.75), (2, 0.5)]


@pytest.mark.parametrize("total", [0.0, np.nan, np.inf, 5e-324])
def test_a_score_that_cannot_be_divided_has_no_target_rows(total):
    assert largest_shares(np.array([1.0, -1.0]), total) == []


def test_a_target_row_without_a_term_is_never_named():
    assert largest_shares(np.array([np.nan, 2.0]), 2.0) == [(1, 1.0)]


def test_a_sample_holds_the_rows_that_are_needed_and_is_the_same_for_the_same_generator():
    found = [sampled_targets(5000, np.random.default_rng(1), [4321, 7], most=10) for _ in range(2)]
    assert {7, 4321} <= set(found[0].tolist())
    assert found[0].tolist() == sorted(set(found[1].tolist()))
    assert len(found[0]) <= 12
    assert sampled_targets(9, np.random.default_rng(1)).tolist() == list(range(9))


# --- less and its kind, against autograd row by row in float64


def cosines(model, rows, target):
    return (unit(explicit(all_at_once(model, target))) @ unit(explicit(all_at_once(model, rows))).T).cpu().numpy()


def test_less_names_the_target_rows_whose_gradients_agree(tmp_path):
    model = lora()
    selector = built(LessSelector, tmp_path, gradient_type="sgd", token_budget=64)
    _, found = explained(selector, model)
    require_shares(found, cosines(model, ROWS, TARGET)[:, SOME] / len(TARGET), range(len(TARGET)))
    assert found.note == ""
    assert found.targets[found.pulls[0][0].set, found.pulls[0][0].target] == list(
        TARGET[found.pulls[0][0].target]["input_ids"]
    )


@pytest.mark.parametrize(
    "params", [{}, {"gradient_type": "sgd"}, {"proj_dim": 512}, {"factor_dim": 3}], ids=lambda p: str(p or "adam")
)
def test_the_shares_of_less_sum_to_the_score_under_every_form(tmp_path, params):
    """The oracle: the selector itself, aimed at one target row alone; its score is then that row's cosine."""
    model, optimizer = trained()
    answer, found = explained(
        built(LessSelector, tmp_path, token_budget=64, **params), model, optimizer=optimizer, count=20
    )
    alone = [built(LessSelector, tmp_path, [row], token_budget=64, **params) for row in TARGET]
    given = context(optimizer=optimizer, explains=False)
    terms_MN = np.stack([selector.scores(model, given.step, context=given) for selector in alone]) / len(TARGET)
    require_shares(found, terms_MN[:, SOME], range(len(TARGET)), rel=5e-3)
    chosen = dict(zip(answer.indices.tolist(), answer.scores.tolist(), strict=True))
    assert found.scores.tolist() == pytest.approx([chosen[row] for row in SOME.tolist()], rel=1e-3, abs=1e-6)


def test_less_names_rows_of_the_set_that_gives_the_score_and_older_updates_decide_which(tmp_path):
    model, second = lora(), TokenRows(3, vocab_size=64, seed=11)
    selector = built(LessSelector, tmp_path, {"a": TARGET, "b": second}, gradient_type="sgd", token_budget=64)
    _, found = explained(selector, model, np.arange(20, dtype=np.int64))
    a, b = (cosines(model, ROWS, target).mean(axis=0) for target in (TARGET, second))
    assert [pulls[0].set for pulls in found.pulls] == ["a" if x > y else "b" for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(found.scores, np.maximum(a, b), rtol=1e-3, atol=1e-6)
    selector._running._sums_SJ[:, 1] += 1.0  # as if former updates had given all to b
    _, found = explained(selector, model, update=1)
    assert {pulls[0].set for pulls in found.pulls} == {"b"}
    np.testing.assert_allclose(found.scores, b[SOME], rtol=1e-3, atol=1e-6)


def test_a_copy_of_a_target_row_is_pulled_by_that_row_first(tmp_path):
    rows = [TokenRows(30, vocab_size=64, seed=5)[i] for i in range(30)]
    rows[13], rows[21] = TARGET[4], TARGET[1]
    for cls, params in ((LessSelector, {"gradient_type": "sgd", "token_budget": 64}), (NearSelector, {})):
        selector = cls(**run_objects(rows, TARGET, folder=tmp_path), **params)
        selector.bind("it", 7)
        _, found = explained(selector, lora(), np.array([13, 21]))
        assert [pulls[0].target for pulls in found.pulls] == [4, 1]


def test_a_row_that_no_update_has_scored_is_explained_all_the_same(tmp_path):
    model = lora()
    selector = built(LessSelector, tmp_path, gradient_type="sgd", token_budget=64, candidates=6)
    answer, _ = explained(selector, model, count=3)
    rest = np.setdiff1d(np.arange(20), selector._running._rows_S)[:4]
    assert len(rest) == 4
    assert len(answer.indices) == 3
    _, found = explained(selector, model, rest, count=3)
    unscored = ~np.isin(rest, selector._running._rows_S)
    terms_MS = cosines(model, ROWS, TARGET)[:, rest] / len(TARGET)
    np.testing.assert_allclose(found.scores[unscored], terms_MS.sum(axis=0)[unscored], rtol=1e-3, atol=1e-6)


def test_sketched_terms_are_within_the_stated_error(tmp_path, monkeypatch):
    model = lora()
    exact_MS = cosines(model, ROWS, TARGET)[:, SOME]
    monkeypatch.setattr(kept_targets, "NUMBERS", 1)
    errors = []
    for seed in range(12):
        selector = built(LessSelector, tmp_path, gradient_type="sgd", token_budget=64)
        selector.seed = seed
        given = context()
        selector.select(model, given.step, 6, context=given)
        kept = selector._scored._kept
        assert kept.dim == 2048
        assert not kept.exact
        with selector._scored._gradients(model) as gradients:
            rows = replace(selector._scored._rows, indices=SOME)
            steps = step_features(gradients.rows, gradients.model, rows, kept, gradients.direction())
        errors.append(kept.terms(steps, None)["eval"].terms * len(TARGET) - exact_MS)
        found = selector.explain(model, SOME, given.step, context=given)
        assert found.note == "estimated from sketches of 2048 numbers"
    errors = np.stack(errors)
    bound = np.sqrt((1 + exact_MS**2) / 2048)
    assert np.sqrt((errors**2).mean()) < 1.2 * np.sqrt((bound**2).mean())
    assert (np.abs(errors) < 6 * bound).all()
    assert np.abs(errors.mean()) < bound.mean() / 3


def test_of_too_many_target_rows_a_sample_is_named_with_shares_of_the_whole_score(tmp_path, monkeypatch):
    model = lora()
    monkeypatch.setattr(kept_targets, "MOST_KEPT", 4)
    _, found = explained(built(LessSelector, tmp_path, gradient_type="sgd", token_budget=64), model)
    terms_MS = cosines(model, ROWS, TARGET)[:, SOME] / len(TARGET)
    assert found.note == "looked at a sample of 4 of 6 target rows"
    np.testing.assert_allclose(found.scores, terms_MS.sum(axis=0), rtol=1e-3, atol=1e-6)
    assert len(found.targets) <= 4
    for column, pulls in enumerate(found.pulls):
        for pull in pulls:
            expected = terms_MS[pull.target, column] / terms_MS[:, column].sum()
            assert pull.share == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_more_rows_than_are_explained_at_once_are_explained_in_lots(tmp_path, monkeypatch):
    model, every = lora(), np.arange(20, dtype=np.int64)
    whole = explained(built(LessSelector, tmp_path, gradient_type="sgd", token_budget=64), model, every)[1]
    monkeypatch.setattr(gradient_scores, "AT_ONCE", 3)
    lots = explained(built(LessSelector, tmp_path, gradient_type="sgd", token_budget=64), model, every)[1]
    np.testing.assert_allclose(lots.scores, whole.scores, rtol=1e-4, atol=1e-7)
    assert [[pull.target for pull in pulls] for pulls in lots.pulls] == [
        [pull.target for pull in pulls] for pulls in whole.pulls
    ]


def test_target_rows_are_numbered_as_they_were_given_those_left_out_included(tmp_path):
    empty = {"input_ids": [5, 6], "attention_mask": [1, 1], "labels": [-100, -100]}
    target = [empty, TARGET[0], empty, TARGET[1], TARGET[2]]
    model = lora()
    for cls, params in ((LessSelector, {"gradient_type": "sgd"}), (NearSelector, {})):
        _, found = explained(built(cls, tmp_path, target, token_budget=64, **params), model)
        assert {pull.target for pulls in found.pulls for pull in pulls} == {1, 3, 4}
        for (_, number), tokens in found.targets.items():
            assert list(tokens) == list(target[number]["input_ids"])


def test_a_row_without_a_label_has_no_target_rows_and_no_score(tmp_path):
    rows = [ROWS[i] for i in range(8)] + [ROWS[8] | {"labels": [-100] * len(ROWS[8]["labels"])}]
    selector = LessSelector(**run_objects(rows, TARGET, folder=tmp_path), gradient_type="sgd", token_budget=64)
    selector.bind("less", 7)
    _, found = explained(selector, lora(), np.array([8, 1]))
    assert found.pulls[0] == []
    assert np.isnan(found.scores[0])
    assert len(found.pulls[1]) == MOST_PULLS


def test_cluster_less_explains_a_row_that_was_not_scored_by_its_own_gradient(tmp_path):
    model = lora()
    selector = made(
        SELECTOR, "cluster_less", {"clusters": 3, "representatives": 2, "gradient_type": "sgd", "token_budget": 64},
        dataset=ROWS, eval_dataset=TARGET, cache_dir=str(tmp_path),
    )  # fmt: skip
    every = np.arange(20, dtype=np.int64)
    _, found = explained(selector, model, every)
    require_shares(found, cosines(model, ROWS, TARGET) / len(TARGET), range(len(TARGET)))


# --- nice


def test_nice_names_the_prompts_whose_policy_gradients_agree(tmp_path):
    tokenizer, model = tiny_tokenizer(), tiny_model(vocab_size=512, hidden=16, layers=1)
    rows = TokenRows(16, vocab_size=512, lengths=range(6, 16))
    prompts = TokenRows(4, vocab_size=512, lengths=range(6, 12), prompt=4, seed=5)
    unlabelled = prompts[0] | {"labels": [-100] * len(prompts[0]["labels"])}
    selector = build(rows, [unlabelled, *(prompts[i] for i in range(4))], tokenizer, gradient_type="sgd")
    goals = {}
    plain = selector.goal.targets
    selector.goal.targets = lambda *args: goals.update(plain(*args)) or goals
    some = np.array([3, 0, 15], dtype=np.int64)
    _, found = explained(selector, model, some)
    (goal,) = goals.values()
    terms = []
    for group in range(4):  # the mean over one prompt alone, of as many as there are
        own = np.flatnonzero(goal.groups == group)
        part = replace(goal, dataset=[goal.dataset[i] for i in own], weights=goal.weights[own], groups=goal.groups[own])
        terms.append(expected_scores(model, part, [rows[int(i)] for i in some], lambda g: g))
    require_shares(found, np.stack(terms), [1, 2, 3, 4], rel=5e-3)
    for (_, number), tokens in found.targets.items():
        assert list(tokens) == list(prompts[number - 1]["input_ids"])  # prompt and reference answer


# --- near


def by_ngrams(selector, dataset):
    rows = np.arange(len(dataset), dtype=np.int64)
    return selector.embedder.embed(None, dataset, rows, "").astype(np.float64)


def test_near_names_the_query_that_took_a_row_and_then_the_nearest_others(tmp_path):
    selector = built(NearSelector, tmp_path)
    answer, _ = explained(selector, None, count=12)
    cosines_MN = by_ngrams(selector, TARGET) @ by_ngrams(selector, ROWS).T
    turns = {}
    for rank in range(20):
        for query in range(6):
            turns.setdefault(int(np.argsort(-cosines_MN[query], kind="stable")[rank]), query)
    again = built(NearSelector, tmp_path)
    answer, found = explained(again, None, np.asarray(answer.indices), count=12)
    for row, score, pulls in zip(answer.indices.tolist(), found.scores, found.pulls, strict=True):
        first = turns[row]
        others = [m for m in np.argsort(-cosines_MN[:, row], kind="stable") if m != first]
        assert [pull.target for pull in pulls] == [first, *others[:2]]
        assert score == pytest.approx(cosines_MN[first, row])
        assert [p.share * score for p in pulls] == pytest.approx([cosines_MN[p.target, row] for p in pulls])
    np.testing.assert_allclose(found.scores, answer.scores, rtol=1e-5)
    assert all(pulls[0].share == 1 for pulls in found.pulls)


def test_near_remembers_who_took_a_row_over_a_checkpoint_also_one_of_an_earlier_version(tmp_path):
    whole, resumed, earlier = (built(NearSelector, tmp_path) for _ in range(3))
    explained(whole, None, count=4)
    state = copy.deepcopy(whole.state_dict())
    given = context(1)
    rows = whole.select(None, given.step, 4, context=given).indices
    expected = whole.explain(None, rows, given.step, context=given)
    resumed.load_state_dict(state)
    _, found = explained(resumed, None, rows, update=1, count=4)
    assert found.pulls == expected.pulls
    earlier.load_state_dict({key: value for key, value in state.items() if key != "taker"})
    _, found = explained(earlier, None, rows, update=1, count=4)  # who took them is not known: by the nearest query
    cosines_MS = by_ngrams(earlier, TARGET) @ by_ngrams(earlier, ROWS)[rows].T
    assert [pulls[0].target for pulls in found.pulls] == cosines_MS.argmax(axis=0).tolist()


def test_near_looks_at_a_sample_of_many_queries_with_those_that_took_the_rows(tmp_path, monkeypatch):
    whole = built(NearSelector, tmp_path)
    answer, _ = explained(whole, None, count=8)
    expected = explained(built(NearSelector, tmp_path), None, np.asarray(answer.indices), count=8)[1]
    monkeypatch.setattr(
        to_target, "sampled_targets", lambda count, generator, needed: sampled_targets(count, generator, needed, 1)
    )
    rows = np.asarray(answer.indices)[[0, 3]]
    found = explained(built(NearSelector, tmp_path), None, rows, count=8)[1]
    assert [pulls[0] for pulls in found.pulls] == [expected.pulls[place][0] for place in (0, 3)]
    assert re.fullmatch("looked at a sample of [23] of 6 target rows", found.note)


# --- tsds


@given(st.integers(0, 2**32), st.integers(1, 7), st.integers(1, 5), st.integers(1, 9))
def test_the_largest_givers_are_those_of_a_table_of_all_masses(seed, queries, k, rows):
    source = np.random.default_rng(seed)
    k = min(k, rows)
    mass = source.integers(0, 4, (queries, k)) / 7
    member = np.stack([source.permutation(rows)[:k] for _ in range(queries)])
    table = np.zeros((queries, rows))
    np.put_along_axis(table, member, mass, axis=1)
    givers = largest_givers(mass, member, table.sum(axis=0))
    for row in range(rows):
        named = givers.of(row)
        order = [m for m in np.argsort(-table[:, row], kind="stable") if table[m, row] > 0][:MOST_PULLS]
        assert [query for query, _ in named] == order
        assert [share for _, share in named] == pytest.approx((table[order, row] / (table[:, row].sum() or 1)).tolist())


def test_tsds_names_the_queries_that_moved_most_mass_to_a_row(tmp_path, monkeypatch):
    masses = []
    plain = transport.transported
    monkeypatch.setattr("dataflex_selectors.tsds.transported", lambda *args: masses.append(plain(*args)) or masses[-1])
    selector = built(TsdsSelector, tmp_path, neighbours=2, alpha=0.3)
    every = np.arange(20, dtype=np.int64)
    answer, found = explained(selector, None, every)
    assert found.scores.sum() == pytest.approx(1)
    chosen = dict(zip(answer.indices.tolist(), answer.scores.tolist(), strict=True))
    assert all(found.scores[row] == score for row, score in chosen.items())
    for score, pulls in zip(found.scores, found.pulls, strict=True):
        assert (score == 0) == (not pulls)
        if 0 < len(pulls) < MOST_PULLS:  # then these are all who gave
            assert sum(pull.share for pull in pulls) == pytest.approx(1)
    gave = {}
    for score, pulls in zip(found.scores, found.pulls, strict=True):
        for pull in pulls:
            gave[pull.target] = gave.get(pull.target, 0) + pull.share * score
    assert all(total <= 1 / 6 + 1e-9 for total in gave.values())
    (mass_MK,) = masses
    assert sorted(gave) == list(range(6))
    assert sum(gave.values()) == pytest.approx(mass_MK.sum())


def test_tsds_explains_after_a_resume_what_it_would_have(tmp_path):
    whole, resumed, earlier = (built(TsdsSelector, tmp_path) for _ in range(3))
    answer, _ = explained(whole, None)
    rows = np.unique(answer.indices)
    _, expected = explained(whole, None, rows)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    _, found = explained(resumed, None, rows)
    assert (found.pulls, found.targets) == (expected.pulls, expected.targets)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert all(found.pulls)
    earlier.load_state_dict({key: value for key, value in whole.state_dict().items() if key != "givers"})
    assert explained(earlier, None, rows)[1] is None  # of a version that kept none


# --- adapt


def test_adapt_names_the_target_rows_that_a_row_is_most_like(tmp_path):
    target = TokenRows(5, lengths=range(4, 9), seed=9)
    trainer = weighted(tmp_path, "adapt", {"temperature": 0.5}, TokenRows(24), target=target, max_steps=1)
    trainer.train()
    weighter, ctx = trainer.component, trainer.training_objective.context
    found = weighter.explain(trainer.model, SOME, 1, context=ctx, dataset=trainer.train_dataset)
    first, now = tiny_model().eval(), trainer.model.eval()
    anchors = np.stack([phi(first, row).numpy() for row in target]).astype(np.float64)
    rows = np.stack([phi(now, TokenRows(24)[int(row)]).numpy() for row in SOME]).astype(np.float64)
    terms_MS = anchors @ rows.T / 5
    totals_S = terms_MS.sum(axis=0)
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp(-totals_S / 0.5)), rtol=1e-4)
    require_shares(replace(found, scores=totals_S), terms_MS, range(5))


def test_adapt_of_many_target_rows_looks_at_some_and_shares_are_of_the_whole(tmp_path, monkeypatch):
    target = TokenRows(30, lengths=range(4, 9), seed=9)
    trainer = weighted(tmp_path / "a", "adapt", None, TokenRows(24), target=target, max_steps=1)
    trainer.train()
    ask = {"context": trainer.training_objective.context, "dataset": trainer.train_dataset}
    whole = trainer.component.explain(trainer.model, SOME, 1, **ask)
    monkeypatch.setattr(adapt, "MOST_TARGETS", 7)
    trainer.component._anchors = []  # as after a resume: the target is embedded anew, with the weights of now
    some = trainer.component.explain(trainer.model, SOME, 1, **ask)
    assert some.note == "looked at a sample of 7 of 30 target rows"
    assert whole.note == ""
    np.testing.assert_allclose(some.scores, whole.scores, rtol=1e-2)


def test_adapt_has_nothing_to_say_before_its_first_step(tmp_path):
    trainer = weighted(tmp_path, "adapt", None, TokenRows(24), target=TARGET, max_steps=1)
    assert trainer.component.explain(trainer.model, SOME, 0, context=trainer.training_objective.context) is None


# --- nothing is changed


@pytest.mark.parametrize("name", asking_for(SELECTOR, "eval_dataset"))
def test_explaining_changes_neither_choices_nor_what_is_remembered(name, tmp_path):
    rows = TokenRows(30, vocab_size=512, lengths=range(6, 16))
    prompts = TokenRows(4, vocab_size=512, lengths=range(6, 12), prompt=4, seed=5)
    model = tiny_model(vocab_size=512, hidden=16, layers=1).eval()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    given = {"dataset": rows, "eval_dataset": prompts, "cache_dir": str(Path(tmp_path))}
    quiet, asked = (made(SELECTOR, name, **given) for _ in range(2))
    for update in range(2):
        plain = quiet.select(model, 10, 6, context=context(update, optimizer, explains=False))
        now = context(update, optimizer)
        own = asked.select(model, 10, 6, context=now)
        assert own.indices.tolist() == plain.indices.tolist()
        np.testing.assert_array_equal(own.scores, plain.scores)
        before = copy.deepcopy(asked.state_dict())
        asked.explain(model, np.asarray(own.indices)[:3], 10, context=now)
        torch.testing.assert_close(asked.state_dict(), before, rtol=0, atol=0)


# --- ranks: test_explanations.py starts them


def on_this_rank(accelerator, folder):
    """Returns component -> (S, 1 + 2 * 3): the scores, and the target rows with their shares."""
    gradients = {"gradient_type": "sgd", "token_budget": 64}
    wanted = {
        "less": (LessSelector, gradients),
        "less sketched": (LessSelector, gradients | {"proj_dim": 512}),
        "cluster_less": (ClusterLessSelector, gradients | {"clusters": 3}),
        "near": (NearSelector, {}),
        "near model": (NearSelector, {"embedding": "model", "token_budget": 64}),
        "tsds": (TsdsSelector, {}),
        "tsds model": (TsdsSelector, {"embedding": "model", "token_budget": 64}),
    }
    torch.manual_seed(3)  # the same adapter on every rank
    found, model = {}, lora()
    for name, (cls, params) in wanted.items():
        selector = cls(**run_objects(ROWS, TARGET, accelerator, folder=folder / name), **params)
        selector.bind(name, 7)
        answer = explained(selector, model)[0]
        found[name] = as_numbers(explained(selector, model, np.unique(answer.indices), update=1)[1])
    weighter = adapt.AdaptWeighter(TARGET, pad_collate)
    weighter.bind("adapt", 7)
    alone = accelerator or Accelerator(cpu=True)
    ctx = SimpleNamespace(accelerator=alone, model=model, state=SimpleNamespace(global_step=0))
    weighter.before_forward(ctx)
    found["adapt"] = as_numbers(weighter.explain(model, SOME, 0, context=ctx, dataset=ROWS))
    prompts = TokenRows(4, vocab_size=512, lengths=range(6, 12), prompt=4, seed=5)
    rows = TokenRows(16, vocab_size=512, lengths=range(6, 16))
    params = {"gradient_type": "sgd", "stub": None, "fallback": "reference", "reward": "exact_match"}
    selector = build(rows, prompts, tiny_tokenizer(), accelerator=accelerator, **params)
    small = tiny_model(vocab_size=512, hidden=16, layers=1)
    found["nice"] = as_numbers(explained(selector, small, np.array([3, 0, 15], dtype=np.int64))[1])
    return found


def as_numbers(found):
    table = np.full((len(found.pulls), 1 + 2 * MOST_PULLS), np.nan)
    table[:, 0] = found.scores
    for line, pulls in zip(table, found.pulls, strict=True):
        for number, pull in enumerate(pulls):
            line[1 + 2 * number : 3 + 2 * number] = pull.target, pull.share
    return table
