"""The selector reward_spread: its formulas against brute force, and what it remembers."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from dataflex.core.context import RowRewards, UpdateContext
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.scoring.named_scores import NamedScores
from dataflex.scoring.seen_rewards import SeenRewards, means, spreads
from dataflex_selectors.parts.neighbours import nearest
from dataflex_selectors.parts.prompt_vectors import prompt_vectors, word_numbers
from dataflex_selectors.parts.reward_beliefs import (
    Evidence,
    Remembered,
    drawn,
    evidence,
    expected,
    lent,
    pooled_variance,
    worth,
)
from dataflex_selectors.reward_spread import RewardSpreadSelector

N = 60
RNG = np.random.default_rng


class Prompts(list):
    """Rows by number, as a dataset has them."""


def rows(count=N):
    return Prompts({"prompt": f"what is {n} times {n % 7}", "n": n} for n in range(count))


def made(dataset=None, **params):
    own = {"dataset": rows() if dataset is None else dataset, "accelerator": None, "data_collator": list}
    selector = RewardSpreadSelector(**params, **own, cache_dir="")
    selector.bind("reward_spread", 7)
    return selector


def choose(selector, seen, count, update=0, step=0, dataset=None):
    scores = NamedScores(selector.dataset if dataset is None else dataset, list, rewards=seen, sources={})
    scores.begin_update(None, step)
    context = UpdateContext(update, 9, step, 99, 1e-3, None, scores=scores)
    return selector.select(None, step, count, context=context)


def sampled(by_row, count=N, step=0):
    """The rewards of some rows' answers, as training keeps them."""
    seen = SeenRewards(count)
    for row, given in by_row.items():
        seen.add(np.full(len(given), row), np.array(given, dtype=np.float32), step)
    return seen


def integral(function, points=200_001):
    """The integral over (0, 1) by the midpoint rule, in float64."""
    p = (np.arange(points) + 0.5) / points
    return float(function(p).sum() / points)


@pytest.mark.parametrize("target", [0.5, 0.3, 0.8])
@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 5), (8, 0), (0, 16), (2.5, 1.25)])
@pytest.mark.parametrize("prior", [2.0, 4.0])
def test_the_expected_worth_is_the_integral_over_the_posterior(target, wins, losses, prior):
    a, b = prior / 2 + wins, prior / 2 + losses

    def density(p):
        return p ** (a - 1) * (1 - p) ** (b - 1)

    asked = integral(lambda p: density(p) * worth(p, target)) / integral(density)
    found = Evidence(True, np.array([float(wins)]), np.array([float(losses)]), np.array([True]))
    assert expected(found, prior, target)[0] == pytest.approx(asked, rel=2e-6)
    if target == 0.5:
        assert expected(found, prior, target)[0] == pytest.approx(a * b / ((a + b) * (a + b + 1)), rel=1e-12)


def test_the_worth_is_highest_at_the_target_and_the_variance_at_a_half():
    p = np.linspace(0.001, 0.999, 999)
    for target in (0.2, 0.5, 0.9):
        assert p[worth(p, target).argmax()] == pytest.approx(target, abs=1e-3)
    assert worth(p, 0.5) == pytest.approx(p * (1 - p))


def test_draws_have_the_mean_that_is_expected():
    found = Evidence(True, np.array([3.0, 0.0, 7.0]), np.array([5.0, 0.0, 1.0]), np.array([True, False, True]))
    draws = np.mean([drawn(found, 2.0, 0.5, RNG(seed)) for seed in range(4000)], axis=0)
    assert draws == pytest.approx(expected(found, 2.0, 0.5), abs=0.004)


def test_a_drawn_variance_has_the_mean_of_the_inverse_chi_square():
    sums, squares, counts = np.array([8.0, 3.0]), np.array([20.0, 9.5]), np.array([6.0, 4.0])
    found = evidence(sums, squares, counts, binary=False)
    about = squares - sums**2 / counts
    assert found.first == pytest.approx(about)
    assert found.second == pytest.approx(counts - 1)
    pooled = about.sum() / (counts - 1).sum()
    assert pooled_variance(found) == pytest.approx(pooled)
    assert expected(found, 4.0, 0.5) == pytest.approx(np.sqrt((4 * pooled + about) / (4 + counts - 1)))
    draws = np.mean([drawn(found, 4.0, 0.5, RNG(seed)) ** 2 for seed in range(20_000)], axis=0)
    degrees = 4 + counts - 1  # the mean of scale / chi2(d) is scale / (d - 2)
    assert draws == pytest.approx((4 * pooled + about) / (degrees - 2), rel=0.05)


@pytest.mark.parametrize("count", [7, 4096])
@pytest.mark.parametrize("value", [0.1, 1e6 + 0.3, -7.7])
def test_equal_rewards_spread_by_nothing_however_large_and_many_they_are(value, count):
    seen = sampled({0: [value] * count, 1: [value, value + 1]})
    found = seen.of(None, 1)
    assert spreads(found)[0] == 0
    assert spreads(found)[1] == pytest.approx(0.5, rel=1e-4)
    assert means(found)[0] == pytest.approx(value, rel=1e-6)
    own = evidence(found.sums, found.squares, found.counts.astype(float), binary=False)
    assert own.first[0] == 0


def test_rewards_that_are_not_finite_are_left_out():
    seen = sampled({0: [1.0, math.nan, 0.0, math.inf], 1: [math.nan]})
    found = seen.of(None, 3)
    assert found.counts[:2].tolist() == [2, 0]
    assert found.ages[:3].tolist() == [3, -1, -1]
    assert seen.binary
    assert math.isnan(means(found)[1])


def test_prompts_with_answers_of_one_reward_come_last():
    seen = sampled({n: [float(n % 3 == 1)] * 8 if n % 3 < 2 else [0, 1] * 4 for n in range(N)})
    for explore in ("thompson", "optimistic"):
        chosen = choose(made(explore=explore), seen, N // 3, step=1)
        good = np.mean(np.asarray(chosen.indices) % 3 == 2)
        assert good >= (1.0 if explore == "optimistic" else 0.7)
        assert len(set(map(int, chosen.indices))) == N // 3


def test_optimism_takes_prompts_that_were_never_sampled_first_and_thompson_takes_both():
    seen = sampled({n: [0, 1, 1, 0] for n in range(N // 2)})
    first = choose(made(explore="optimistic"), seen, N // 2, step=1)
    assert set(map(int, first.indices)) == set(range(N // 2, N))
    both = np.asarray(choose(made(), seen, N // 2, step=1).indices)
    assert 0 < (both < N // 2).sum() < N // 2


def test_without_any_reward_rows_are_random_and_the_same_for_a_seed():
    one, again = (choose(made(), SeenRewards(N), 20).indices for _ in range(2))
    assert one.tolist() == again.tolist()
    assert one.tolist() != choose(made(), SeenRewards(N), 20, update=1).indices.tolist()
    assert sorted(one.tolist()) != list(range(20))
    ties = choose(made(explore="optimistic"), SeenRewards(N), 20).indices
    assert sorted(ties.tolist()) != list(range(20)), "ties are broken by a draw, not by the row number"


def test_rewards_of_one_value_only_are_no_division_by_zero():
    seen = sampled({n: [2.5] * 4 for n in range(N)})
    for explore in ("thompson", "optimistic"):
        chosen = choose(made(explore=explore), seen, 10, step=1)
        assert chosen.scores.tolist() == [0.0] * 10


def test_a_prompt_counts_as_never_sampled_when_its_rewards_are_too_old():
    seen = sampled({0: [0.0] * 8})
    seen.add(np.repeat(1, 8), np.zeros(8), 9)
    selector = made(max_age=5, explore="optimistic")
    found = choose(selector, seen, N, step=10)
    assert found.candidates[0] == pytest.approx(1 / 6)
    assert found.candidates[1] == pytest.approx(1 * 9 / (10 * 11))
    assert int(found.indices[-1]) == 1


def test_older_rewards_count_less_once_newer_ones_are_there():
    seen, memory = sampled({0: [0.0] * 8, 1: [0.0] * 8}), Remembered(N, 0.5)
    memory.look(seen.of(None, 1), None)
    seen.add(np.repeat(0, 8), np.ones(8), 1)
    found = memory.look(seen.of(None, 2), None)
    assert (found.first[0], found.second[0]) == (8.0, 4.0)
    assert (found.first[1], found.second[1]) == (0.0, 8.0)
    again = memory.look(seen.of(None, 3), None)  # nothing new: nothing is forgotten
    assert (again.first[0], again.second[0]) == (8.0, 4.0)


def test_what_is_remembered_comes_back_from_a_checkpoint():
    seen = sampled({0: [0.0, 1.0] * 4, 5: [1.0] * 8})
    one = made()
    choose(one, seen, 10, step=1)
    seen.add(np.repeat([0, 7], 4), np.tile([1.0, 0.0], 4), 2)
    other = made()
    other.load_state_dict(one.state_dict())
    kept = SeenRewards(N)
    kept.load_state_dict(seen.state_dict())
    first, second = choose(one, seen, 20, 1, 3), choose(other, kept, 20, 1, 3)
    assert first.indices.tolist() == second.indices.tolist()
    assert first.scores.tolist() == second.scores.tolist()


def test_a_prompt_without_words_lends_nothing_and_borrows_nothing():
    dataset = Prompts({"prompt": text} for text in ("  ", "add two and three", "add two and four", "", "name a sea"))
    assert word_numbers("a \ud800").shape == (2,)  # half of a pair of bytes, as broken texts have it
    seen = sampled({0: [1.0, 0.0] * 8, 1: [1.0] * 16}, len(dataset))
    values = choose(made(dataset, neighbours=1), seen, 5, step=1).candidates
    alone = choose(made(dataset), seen, 5, step=1).candidates
    assert values[2] < alone[2]  # by the prompt that is like it
    assert values[3:] == pytest.approx(alone[3:], rel=1e-9)  # one without words, and one that is like none


def test_a_training_that_begins_anew_forgets_what_the_one_before_it_saw():
    remembered, fresh = Remembered(2, 0.5), Remembered(2, 0.5)
    remembered.look(sampled({0: [1.0] * 8, 1: [1.0] * 4}, 2).of(None, 1), None)
    for given in ({}, {0: [0.0] * 4}, {0: [0.0] * 12, 1: [1.0, 0.0]}):
        found, wanted = (each.look(sampled(given, 2).of(None, 1), None) for each in (remembered, fresh))
        assert [found.first.tolist(), found.second.tolist()] == [wanted.first.tolist(), wanted.second.tolist()]


def test_neighbours_lend_what_they_have_by_their_likeness():
    seen = Evidence(True, np.array([8.0, 0, 0]), np.array([0, 8.0, 0]), np.array([True, True, False]))
    cosine = np.array([[1.0, 0.5]])
    found = lent(seen, np.array([2]), np.array([[0, 1]]), cosine)
    assert (found.first[2], found.second[2]) == (4.0, 2.0)
    assert found.first[:2].tolist() == [8.0, 0.0]
    unlike = lent(seen, np.array([2]), np.array([[0, 1]]), -cosine)
    assert (unlike.first[2], unlike.second[2]) == (0.0, 0.0)


def test_a_prompt_like_the_hard_ones_is_expected_to_be_hard():
    words = ["sum of three and four", "proof of a hard theorem"]
    dataset = Prompts({"prompt": f"{words[n % 2]} number {n}"} for n in range(N))
    seen = sampled({n: [0.0] * 8 if n % 2 else [0.0, 1.0] * 4 for n in range(N // 2)})
    values = choose(made(dataset, neighbours=3), seen, 5, step=1).candidates[N // 2 :]
    assert values[0::2].min() > values[1::2].max()
    vectors = prompt_vectors(dataset, 256)
    distances, near = nearest(vectors[N // 2 :], vectors[: N // 2], 3)
    brute = np.linalg.norm(vectors[N // 2 :, None] - vectors[None, : N // 2], axis=2)
    assert distances == pytest.approx(np.sort(brute, axis=1)[:, :3], abs=1e-3)
    assert (near % 2 == np.arange(N // 2, N)[:, None] % 2).all()


def test_messages_and_texts_that_say_the_same_have_one_vector():
    chat = [{"role": "user", "content": "What is 2 + 3?"}]
    dataset = Prompts([{"prompt": chat}, {"prompt": "what is 2 + 3 ?"}, {"prompt": ""}, {}])
    vectors = prompt_vectors(dataset, 64)
    assert vectors[0].tolist() == vectors[1].tolist()
    assert not vectors[2:].any()
    assert len(word_numbers("What is 2 + 3?")) == 6


def test_a_target_beside_a_half_needs_rewards_of_0_and_1():
    assert len(choose(made(target=0.3), sampled({0: [0, 1, 1]}), 5, step=1).indices) == 5
    with pytest.raises(ComponentError, match=r"target: 0.3 is a rate of success, and there are rewards beside 0 and 1"):
        choose(made(target=0.3), sampled({0: [0.5, 1, 1]}), 5, step=1)


def test_more_prompts_than_there_are_and_a_run_without_rewards_are_refused():
    with pytest.raises(ComponentError, match=r"61 rows are wanted, but only 60 of 60 are there -> give more prompts"):
        choose(made(), SeenRewards(N), N + 1)
    with pytest.raises(ComponentError, match=r"61 rows are wanted"):
        made().check_run(None, SimpleNamespace(most_rows=N + 1))
    with pytest.raises(ComponentError, match=r"the run has no rewards: its trainer samples no answers"):
        choose(made(), None, 5)


def test_every_wrong_parameter_is_named_in_one_message():
    wrong = {"target": 0, "explore": "greedy", "max_age": 0, "prior": 0, "decay": 2, "neighbours": -1, "dim": 0}
    with pytest.raises(ConfigError) as refused:
        made(**wrong)
    assert all(
        f"{key} of the reward_spread selector: found {value!r}," in str(refused.value) for key, value in wrong.items()
    )


def test_one_prompt_is_enough():
    chosen = choose(made(rows(1)), SeenRewards(1), 1)
    assert chosen.indices.tolist() == [0]


def test_rewards_of_rows_are_those_of_a_selector_made_on_some_of_them():
    seen = sampled({3: [1.0, 0.0], 9: [1.0]})
    scores = NamedScores(rows(), list, rewards=seen, sources={})
    scores.begin_update(None, 4)
    part: RowRewards = scores.within(np.array([9, 3, 0])).rewards()
    assert (part.counts.tolist(), part.sums.tolist(), part.ages.tolist()) == ([1, 2, 0], [1.0, 1.0, 0.0], [4, 4, -1])
    assert scores.of("reward", np.array([3, 9])).tolist() == [0.5, 1.0]
    assert scores.of("reward:spread", np.array([3, 9])).tolist() == [0.5, 0.0]
    assert np.isnan(scores.of("reward")[0])
