"""LESS chooses the rows that its formula says, carries its scores over updates, and survives a resume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.testing import TokenRows, tiny_batch
from dataflex_selectors.less import LessSelector
from dataflex_selectors.parts.pick import pick
from every_component import run_objects
from test_gradients import all_at_once, lora
from test_influence import explicit, unit


def selector(dataset, target, tmp_path, **params) -> LessSelector:
    made = LessSelector(**run_objects(dataset, target, folder=tmp_path), **{"token_budget": 64} | params)
    made.bind("less", 7)
    return made


def context(update: int, optimizer=None, rate: float = 1e-3) -> UpdateContext:
    return UpdateContext(update, 5, 10 * (update + 1), 60, rate, optimizer)


@pytest.fixture(scope="module")
def rows() -> TokenRows:
    return TokenRows(20, vocab_size=64, lengths=range(4, 16), seed=2)


@pytest.fixture(scope="module")
def target() -> TokenRows:
    return TokenRows(6, vocab_size=64, lengths=range(4, 16), seed=3)


@pytest.fixture(scope="module")
def model():
    return lora()


def cosines(model, rows, target) -> np.ndarray:
    return (unit(explicit(all_at_once(model, rows))) @ unit(explicit(all_at_once(model, target))).mean(0)).cpu().numpy()


def test_the_highest_cosines_win(model, rows, target, tmp_path):
    made = selector(rows, target, tmp_path, gradient_type="sgd")
    found = made.select(model, 10, 6, context=context(0))
    expected = cosines(model, rows, target)
    assert list(found.indices) == list(np.argsort(-expected)[:6])
    np.testing.assert_allclose(found.scores, np.sort(expected)[::-1][:6], rtol=1e-4)
    np.testing.assert_allclose(made.scores(model, 10, context=context(0)), expected, rtol=1e-4, atol=1e-6)


def test_rows_that_are_the_target_come_first(model, target, tmp_path):
    rows = [TokenRows(30, vocab_size=64, seed=5)[i] for i in range(30)]
    rows[13], rows[21] = target[0], target[1]
    made = selector(rows, [target[0], target[1]], tmp_path, gradient_type="sgd")
    assert set(made.select(model, 10, 2, context=context(0)).indices) == {13, 21}


def test_several_sets_are_each_a_mean_and_the_best_counts(model, rows, target, tmp_path):
    second = TokenRows(3, vocab_size=64, seed=11)
    made = selector(rows, {"a": target, "b": second}, tmp_path, gradient_type="sgd")
    expected = np.maximum(cosines(model, rows, target), cosines(model, rows, second))
    np.testing.assert_allclose(made.scores(model, 10, context=context(0)), expected, rtol=1e-4, atol=1e-6)


def test_scores_of_former_updates_fade_and_are_restored(rows, target, tmp_path):
    first, second = lora(), lora()
    made = selector(rows, target, tmp_path, gradient_type="sgd", decay=0.5)
    made.select(first, 10, 4, context=context(0, rate=2e-3))
    again = selector(rows, target, tmp_path, gradient_type="sgd", decay=0.5)
    again.load_state_dict(made.state_dict())
    found = made.scores(second, 20, context=context(1, rate=1e-3))
    a, b = cosines(first, rows, target), cosines(second, rows, target)
    np.testing.assert_allclose(found, (0.5 * 2e-3 * a + 1e-3 * b) / (0.5 * 2e-3 + 1e-3), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(again.scores(second, 20, context=context(1, rate=1e-3)), found)


def test_adam_uses_the_optimizers_moments(model, rows, target, tmp_path):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    adam, sgd = (selector(rows, target, tmp_path, gradient_type=form) for form in ("adam", "sgd"))
    before = adam.scores(model, 10, context=context(0, optimizer))
    np.testing.assert_array_equal(before, sgd.scores(model, 10, context=context(0, optimizer)))
    model(**tiny_batch([rows[0], rows[1]])).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    adam, sgd = (selector(rows, target, tmp_path, gradient_type=form) for form in ("adam", "sgd"))
    after = [made.scores(model, 10, context=context(0, optimizer)) for made in (adam, sgd)]
    assert not np.allclose(*after, rtol=1e-2)


def test_candidates_are_drawn_afresh_and_rows_come_from_them(model, rows, target, tmp_path):
    made = selector(rows, target, tmp_path, candidates=8)
    chosen = [tuple(sorted(made.select(model, 10, 8, context=context(u)).indices)) for u in range(3)]
    assert len(set(chosen)) == 3
    assert all(len(set(c)) == 8 for c in chosen)


def test_more_rows_than_have_labels_are_refused(model, target, tmp_path):
    rows = [TokenRows(3, vocab_size=64)[i] for i in range(3)]
    rows[2]["labels"] = [-100] * len(rows[2]["labels"])
    made = selector(rows, target, tmp_path)
    with pytest.raises(ComponentError, match="3 rows are wanted, but only 2 of 3 have a score"):
        made.select(model, 10, 3, context=context(0))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"gradient_type": "adamw"}, "gradient_type of the less selector"),
        ({"decay": 1.5}, "decay of the less selector"),
        ({"proj_dim": 0}, "proj_dim of the less selector"),
        ({"mode": "best"}, "mode of the less selector"),
    ],
)
def test_bad_parameters_are_named(params, words, rows, target, tmp_path):
    with pytest.raises(ConfigError, match=words):
        selector(rows, target, tmp_path, **params)


def test_no_evaluation_set_is_refused(rows, tmp_path):
    with pytest.raises(ConfigError, match=r"no evaluation set.*val_size"):
        selector(rows, None, tmp_path)


def test_sets_choose_in_turn_and_samples_follow_the_scores():
    scores = np.array([[9.0, 8.0], [8.0, 9.0], [7.0, 1.0], [1.0, 7.0], [np.nan, 5.0], [0.0, 0.0]])
    generator = np.random.Generator(np.random.Philox(key=1))
    assert pick(scores, 4, "quota", 1.0, generator).tolist() == [0, 1, 2, 3]
    assert pick(scores, 5, "topk", 1.0, generator).tolist() == [0, 1, 2, 3, 5]
    drawn = [tuple(pick(scores, 3, "sample", 1.0, generator)) for _ in range(300)]
    assert len(set(drawn)) > 10
    counts = np.bincount(np.concatenate(drawn), minlength=6)
    assert counts[4] == 0
    assert counts[0] > counts[2] > counts[5]
    assert sorted(pick(scores, 3, "sample", 0.01, generator)) in ([0, 1, 2], [0, 1, 3])
