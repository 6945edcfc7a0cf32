"""Rows are chosen by how far their step raises the reward of the model's own answers."""

from __future__ import annotations

import random
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import DistributedType
from dataflex.config.components_file import packaged_components
from dataflex.core import agreement
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.errors import ComponentError, ConfigError, DataflexError
from dataflex.core.kinds import SELECTOR
from dataflex.core.registry import find
from dataflex.scoring import trial
from dataflex.testing import TokenRows, tiny_batch, tiny_model, tiny_tokenizer
from dataflex_selectors.nice.nice_selector import NiceSelector
from dataflex_selectors.parts.running_scores import RunningScores
from every_component import run_objects

QUICK = {"samples": 4, "max_new_tokens": 5, "top_k": 0, "top_p": 1.0, "decay": 0.0}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model():
    return tiny_model(vocab_size=512, hidden=16, layers=1)


@pytest.fixture(scope="module")
def rows():
    return TokenRows(16, vocab_size=512, lengths=range(6, 16))


@pytest.fixture(scope="module")
def target():
    return TokenRows(4, vocab_size=512, lengths=range(6, 12), prompt=4, seed=5)


def length_reward(answers):
    """Longer texts earn more: a reward that tells any two answers apart."""
    return np.array([float(len(answer.text)) for answer in answers])


def build(rows, target, tokenizer, *, stub=length_reward, seed=7, accelerator=None, **params):
    selector = NiceSelector(**run_objects(rows, target, accelerator), tokenizer=tokenizer, **(QUICK | params))
    selector.bind("nice", seed)
    if stub is not None:
        selector.goal.reward = stub
    return selector


def context(update=0, optimizer=None, rate=1e-3):
    return UpdateContext(update, updates=9, step=10, total_steps=90, learning_rate=rate, optimizer=optimizer)


def select(selector, model, count, **where):
    return selector.select(model, 10, count, context=context(**where))


def flat_gradient(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def sum_nll(model, row):
    batch = tiny_batch([row])
    return model(**batch).loss * sum(label != -100 for label in row["labels"][1:])


def expected_scores(model, goal, rows, step):
    """The oracle: (N,) mean cosine of each row's step with the prompts' policy gradients, by autograd row by row.

    A prompt without an answer that counts is a vector of 0 in it.
    """
    model.eval()
    vectors = []
    for group in np.unique(goal.groups):
        members = np.flatnonzero(goal.groups == group)
        g = sum(goal.weights[i] * flat_gradient(model, sum_nll(model, goal.dataset[i])) for i in members)
        vectors.append(g / g.norm())
    mean = torch.stack(vectors).sum(0) / goal.count
    steps = [step(flat_gradient(model, model(**tiny_batch([row])).loss)) for row in rows]
    return np.array([float(mean @ s / s.norm()) for s in steps])


def targets_of(selector, model, update=0):
    found = {}
    plain = selector.goal.targets
    selector.goal.targets = lambda *args: found.update(plain(*args)) or found
    scores = selector.scores(model, 10, context=context(update=update))
    selector.goal.targets = plain
    return found, scores


def test_the_entry_point_leads_to_the_class():
    assert find(SELECTOR, "nice") is NiceSelector


# --- the scores


def test_sgd_scores_are_cosines_of_gradients_with_the_policy_gradient(model, rows, target, tokenizer):
    goals, scores = targets_of(build(rows, target, tokenizer, reject=False, gradient_type="sgd"), model)
    expected = expected_scores(model, goals[0], rows, lambda g: g)
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-5)
    assert len(goals[0].dataset) > 8


def trained(model, rows):
    """An optimizer with moments that are far from the next gradient."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for row in list(rows)[:6]:
        model(**tiny_batch([row])).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return optimizer


def adam_step(model, optimizer):
    states = [optimizer.state[p] for p in model.parameters()]
    m, v = (torch.cat([state[key].flatten() for state in states]) for key in ("exp_avg", "exp_avg_sq"))
    t = int(states[0]["step"]) + 1

    def step(g):
        first, second = (0.9 * m + 0.1 * g) / (1 - 0.9**t), (0.999 * v + 0.001 * g * g) / (1 - 0.999**t)
        return first / (second.sqrt() + 1e-8)

    return step


def test_adam_scores_are_cosines_of_the_optimizers_steps_and_differ_from_sgd(model, rows, target, tokenizer):
    optimizer = trained(model, rows)
    where = {"context": context(optimizer=optimizer)}
    by_form = {}
    for form in ("adam", "sgd"):
        selector = build(rows, target, tokenizer, reject=False, gradient_type=form)
        by_form[form] = selector.scores(model, 10, **where)
    goals, _ = targets_of(build(rows, target, tokenizer, reject=False, gradient_type="sgd"), model)
    expected = expected_scores(model, goals[0], rows, adam_step(model, optimizer))
    np.testing.assert_allclose(by_form["adam"], expected, rtol=1e-3, atol=1e-6)
    assert np.corrcoef(by_form["adam"], by_form["sgd"])[0, 1] < 0.9


class Numbers:
    """A tokenizer whose text is the token ids."""

    eos_token_id, pad_token_id = 2, 0

    def decode(self, tokens, skip_special_tokens):
        return " ".join(map(str, tokens))


@pytest.mark.parametrize("earning", ["even", "odd"])
def test_rows_that_teach_what_earns_more_come_first(earning):
    def reward(answers):  # the share of even, or of odd, tokens
        shares = np.array([np.mean([int(token) % 2 == 0 for token in answer.text.split()]) for answer in answers])
        return shares if earning == "even" else 1 - shares

    model, target = tiny_model(vocab_size=32, hidden=16, layers=1), TokenRows(4, vocab_size=32, lengths=8, prompt=4)
    source = random.Random(1)
    pool = []
    for number in range(20):  # the even rows teach even tokens
        answer = [2 * source.randrange(2, 15) + number % 2 for _ in range(6)]
        tokens = [*target[number % 4]["input_ids"][:4], *answer]
        pool.append({"input_ids": tokens, "attention_mask": [1] * 10, "labels": [-100] * 4 + answer})
    options = {"stub": reward, "samples": 200, "keep": 200, "reject": False, "gradient_type": "sgd"}
    answer = select(build(pool, target, Numbers(), baseline=True, **options), model, 10)
    assert sum(row % 2 == (earning == "odd") for row in answer.indices) >= 8


def test_scores_are_aligned_with_the_rows_best_first(model, rows, target, tokenizer):
    answer = select(build(rows, target, tokenizer, reject=False), model, 6)
    every = build(rows, target, tokenizer, reject=False).scores(model, 10, context=context())
    np.testing.assert_allclose(answer.scores, every[answer.indices], rtol=1e-4, atol=1e-6)
    assert (np.diff(answer.scores) <= 0).all()
    assert answer.scores[-1] >= np.delete(every, answer.indices).max() - 1e-6


def test_rows_without_labels_are_never_chosen(model, rows, target, tokenizer):
    pool = [{**row, "labels": [-100] * len(row["labels"])} if i % 2 else row for i, row in enumerate(rows)]
    answer = select(build(pool, target, tokenizer, reject=False), model, 8)
    assert sorted(answer.indices) == list(range(0, 16, 2))
    with pytest.raises(ComponentError, match="9 rows are wanted, but only 8 of 16 have a score"):
        select(build(pool, target, tokenizer, reject=False), model, 9)


def test_candidates_and_prompts_are_fresh_draws_at_each_update(model, rows, target, tokenizer):
    asked = []

    def reward(answers):
        asked.append({answer.prompt for answer in answers})
        return length_reward(answers)

    selector = build(rows, target, tokenizer, stub=reward, reject=False, candidates=5, prompts=2)
    pools = {frozenset(select(selector, model, 5, update=update).indices.tolist()) for update in range(4)}
    assert len(pools) > 1
    assert all(len(prompts) == 2 for prompts in asked)
    assert len({frozenset(prompts) for prompts in asked}) > 1


def test_selections_repeat_for_a_seed_and_change_with_it_and_the_update(model, rows, target, tokenizer):
    first = select(build(rows, target, tokenizer, reject=False), model, 16)
    torch.manual_seed(3)
    again = select(build(rows, target, tokenizer, reject=False), model, 16)
    assert (first.scores == again.scores).all()
    assert (select(build(rows, target, tokenizer, reject=False, seed=8), model, 16).scores != first.scores).any()
    assert (select(build(rows, target, tokenizer, reject=False), model, 16, update=1).scores != first.scores).any()


def test_selecting_disturbs_nothing(model, rows, target, tokenizer):
    model.train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    states = (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))
    select(build(rows, target, tokenizer, reject=False), model, 4)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())) == states


# --- which answers count


def test_exact_match_counts_the_answers_that_are_the_reference(model, rows, tokenizer):
    prompt = [10, 11, 12]
    with torch.no_grad():
        likely = int(model(torch.tensor([prompt], device=model.device)).logits[0, -1].argmax())
    reference = {"input_ids": [*prompt, likely], "attention_mask": [1] * 4, "labels": [-100] * 3 + [likely]}
    options = {"stub": None, "top_k": 1, "max_new_tokens": 1, "samples": 3}
    goals, _ = targets_of(build(rows, [reference], tokenizer, **options), model)
    assert [row["input_ids"] for row in goals[0].dataset] == [[*prompt, likely]] * 3
    assert goals[0].weights.tolist() == [1, 1, 1]


def test_no_answer_that_counts_is_an_error_with_a_way_out(model, rows, target, tokenizer):
    with pytest.raises(ComponentError, match=r"or has a reward of 0\) -> set fallback: reference, reject: false, more"):
        select(build(rows, target, tokenizer, stub=None, reject=True), model, 4)
    with pytest.raises(
        ComponentError, match=r"no answer to any prompt counts .* -> set fallback: reference, more samp"
    ):
        select(build(rows, target, tokenizer, stub=None), model, 4)


def test_the_default_is_the_published_command_and_a_preset_is_its_rejecting_form(model, rows, target, tokenizer):
    """``vanilla``: every answer counts by its reward, none against the reference's, and not the best ten alone."""
    goals, _ = targets_of(build(rows, target, tokenizer, samples=12, gradient_type="sgd"), model)
    per_prompt = np.bincount(goals[0].groups, minlength=4)
    assert per_prompt.max() > 10
    assert goals[0].count == 4
    (preset,) = packaged_components(SELECTOR)["nice_reject"]
    assert (preset.name, preset.params) == ("nice", {"reject": True, "keep": 10})


@pytest.mark.parametrize("rules", [{"reject": True, "keep": 10}, {}])
def test_a_prompt_without_an_accepted_answer_is_a_vector_of_0_in_the_mean(model, rows, target, tokenizer, rules):
    """It was left out of the mean, so that the sets, and the updates, whose prompts fail weighed as much as others."""
    whole, _ = targets_of(build(rows, target, tokenizer, stub=length_reward, gradient_type="sgd"), model)
    failed = tokenizer.decode(target[1]["input_ids"][:4], skip_special_tokens=True).strip()

    def reward(answers):
        return np.array(
            [0.0 if a.prompt == failed else 1.0 + len(a.text) + 99 * (a.text != a.reference) for a in answers]
        )

    selector = build(rows, target, tokenizer, stub=reward, gradient_type="sgd", **rules)
    if rules:  # what is as good as the reference is accepted, so here it must be worse
        plain = selector.goal.reward
        selector.goal.reward = lambda answers: np.where(
            [a.prompt == failed and a.text != a.reference for a in answers], -1.0, plain(answers)
        )
    goals, scores = targets_of(selector, model)
    assert 1 not in goals[0].groups
    assert len(np.unique(goals[0].groups)) == 3
    assert goals[0].count == 4 == whole[0].count
    np.testing.assert_allclose(scores, expected_scores(model, goals[0], rows, lambda g: g), rtol=1e-3, atol=1e-5)


def test_the_fallback_aims_at_the_reference_answers(model, rows, target, tokenizer):
    goals, _ = targets_of(build(rows, target, tokenizer, stub=None, fallback="reference"), model)
    assert goals[0].dataset == [dict(row) for row in target]
    assert goals[0].weights.tolist() == [1.0] * 4


def test_a_reward_that_gives_nothing_at_all_is_an_error(model, rows, target, tokenizer):
    with pytest.raises(ComponentError, match="none of 20 answers has a reward"):
        select(build(rows, target, tokenizer, stub=lambda answers: np.full(len(answers), np.nan)), model, 4)


# --- several sets and updates


def test_of_several_sets_each_row_counts_for_the_best_and_one_without_a_target_is_passed_over(
    model, rows, target, tokenizer
):
    other = TokenRows(3, vocab_size=512, lengths=9, prompt=4, seed=9)
    lost = tokenizer.decode(other[0]["input_ids"][:4], skip_special_tokens=True).strip()

    def reward(answers):
        return np.array([0.0 if answer.prompt == lost else float(len(answer.text)) for answer in answers])

    sets = {"a": target, "lost": [other[0]], "b": [other[1], other[2]]}
    goals, scores = targets_of(build(rows, sets, tokenizer, stub=reward, reject=False, gradient_type="sgd"), model)
    assert sorted(goals) == [0, 2]
    each = [expected_scores(model, goal, rows, lambda g: g) for goal in goals.values()]
    np.testing.assert_allclose(scores, np.max(each, axis=0), rtol=1e-3, atol=1e-5)
    for mode in ("quota", "sample"):
        selector = build(rows, sets, tokenizer, stub=reward, reject=False, gradient_type="sgd", mode=mode)
        answer = select(selector, model, 4)
        assert len(set(answer.indices.tolist())) == 4
        if mode == "quota":
            assert answer.indices[:2].tolist() == [int(np.argmax(each[0])), int(np.argmax(each[1]))]


def test_running_scores_average_by_rate_and_age():
    running = RunningScores(2, decay=0.5)
    running.add(np.array([0, 1]), [0], np.array([[0.2], [0.4]]), rate=2.0)
    found = running.add(np.array([1, 2]), [0, 1], np.array([[0.1, 0.3], [np.nan, np.nan]]), rate=1.0)
    np.testing.assert_allclose(found, [[(0.5 * 2 * 0.4 + 0.1) / 2, 0.3], [np.nan, np.nan]])
    later = running.add(np.array([0, 3]), [0], np.array([[0.6], [0.7]]), rate=0.0)
    np.testing.assert_allclose(later, [[0.2, -np.inf], [0.7, -np.inf]])
    resumed = RunningScores(2, decay=0.5)
    resumed.load_state_dict(running.state_dict())
    args = (np.arange(4), [1], np.full((4, 1), 0.5), 1.0)
    np.testing.assert_array_equal(resumed.add(*args), running.add(*args))


def test_a_resumed_selector_continues_as_if_never_stopped_and_asks_for_no_reference_again(
    model, rows, target, tokenizer
):
    counts = []

    def reward(answers):
        counts.append(len(answers))
        return length_reward(answers)

    options = {"stub": reward, "reject": False, "decay": 0.9}
    whole, first, resumed = (build(rows, target, tokenizer, **options) for _ in range(3))
    expected = [select(whole, model, 6, update=update).indices.tolist() for update in range(4)]
    assert counts == [20, 16, 16, 16]  # 4 prompts of 4 answers, and their 4 references once
    found = [select(first, model, 6, update=update).indices.tolist() for update in range(2)]
    resumed.load_state_dict(first.state_dict())
    counts.clear()
    found += [select(resumed, model, 6, update=update).indices.tolist() for update in range(2, 4)]
    assert found == expected
    assert counts == [16, 16]


def test_a_reference_without_a_reward_is_asked_for_again(model, rows, target, tokenizer):
    counts, given = [], [np.nan]

    def reward(answers):
        counts.append(len(answers))
        found = length_reward(answers)
        if len(answers) > 16:
            found[16:] = given.pop() if given else 0.0
        return found

    selector = build(rows, target, tokenizer, stub=reward, fallback="reference")
    for update in range(3):
        select(selector, model, 4, update=update)
    assert counts == [20, 20, 16]


# --- what is refused


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"samples": 0}, "samples of the nice selector: found 0, allowed: a whole number of at least 1"),
        ({"max_new_tokens": 1.5}, "max_new_tokens of the nice selector: found 1.5"),
        ({"temperature": 0}, "temperature of the nice selector: found 0, allowed: a number above 0"),
        ({"top_k": -1}, "top_k of the nice selector: found -1, allowed: a whole number of at least 0"),
        ({"top_p": 1.1}, "top_p of the nice selector: found 1.1, allowed: a number above 0 and at most 1"),
        ({"prompts": 0}, "prompts of the nice selector: found 0"),
        ({"keep": 0}, "keep of the nice selector: found 0"),
        ({"reject": "yes"}, "reject of the nice selector: found 'yes'"),
        ({"baseline": 0}, "baseline of the nice selector: found 0"),
        ({"fallback": "referense"}, r"fallback of the nice selector: .* -> did you mean 'reference'\?"),
        ({"reward": "exactmatch"}, r"reward of the nice selector: .* -> did you mean 'exact_match'\?"),
        ({"reward": "model"}, "reward_model of the nice selector: it has no value, and reward: model needs one"),
        (
            {"reward_model": "a/b"},
            "reward_model of the nice selector: it is of no use with reward: exact_match -> leave",
        ),
        ({"reward": "endpoint", "endpoint_model": "m"}, "endpoint of the nice selector: it has no value"),
        ({"reward": "endpoint", "endpoint": "https://h/v1"}, "endpoint_model of the nice selector: it has no value"),
        ({"endpoint": "https://h/v1"}, "endpoint of the nice selector: it is of no use with reward: exact_match"),
        (
            {"reward": "endpoint", "endpoint": "h/v1", "endpoint_model": "m"},
            "endpoint of the nice selector: it is no address",
        ),
        (
            {"reward": "endpoint", "endpoint": "http://h", "endpoint_model": "m", "api_key_env": "NOT_SET_ANYWHERE"},
            "api_key_env of the nice selector: the environment variable of that name is not set",
        ),
        ({"timeout": 0}, "timeout of the nice selector: found 0"),
        ({"attempts": 0}, "attempts of the nice selector: found 0"),
        ({"concurrency": 0}, "concurrency of the nice selector: found 0"),
        ({"show_reference": 1}, "show_reference of the nice selector: found 1"),
        ({"instruction": " "}, "instruction of the nice selector: it is no text, or an empty one"),
        ({"gradient_type": "adm"}, r"gradient_type of the nice selector: .* -> did you mean 'adam'\?"),
        ({"proj_dim": 0}, "proj_dim of the nice selector: found 0"),
        ({"decay": 1.5}, "decay of the nice selector: found 1.5"),
        ({"mode": "top"}, r"mode of the nice selector: .* -> did you mean 'topk'\?"),
        ({"draw_temperature": 0}, "draw_temperature of the nice selector: found 0"),
        ({"candidates": 0}, "candidates of the nice selector: found 0"),
        ({"token_budget": 0}, "token_budget of the nice selector: found 0"),
        ({"sampling_tokens": 0}, "sampling_tokens of the nice selector: found 0"),
    ],
)
def test_parameters_out_of_range_are_refused(rows, target, tokenizer, params, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(rows, target, tokenizer, **params)
    assert "1 problem" in str(caught.value)


def test_everything_wrong_is_said_at_once(rows):
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP)
    with pytest.raises(ConfigError, match="4 problems") as caught:
        build(rows, None, None, accelerator=accelerator, keep=0)
    for part in (
        "the run has no evaluation set",
        "tokenizer of the nice",
        "FSDP shards the weights",
        "keep of the nice",
    ):
        assert part in str(caught.value)


def test_a_key_in_place_of_its_variables_name_is_repeated_nowhere(rows, target, tokenizer):
    key = "sk-verysecret"
    params = {"reward": "endpoint", "endpoint": "http://h", "endpoint_model": "m", "api_key_env": key}
    with pytest.raises(ConfigError) as caught:
        build(rows, target, tokenizer, **params)
    assert key not in str(caught.value)


def test_no_rank_asks_for_a_reward_where_another_has_refused(model, rows, target, tokenizer, monkeypatch):
    asked = []
    selector = build(rows, target, tokenizer, stub=lambda answers: asked.append(answers) or length_reward(answers))
    selector.accelerator = SimpleNamespace(num_processes=2, mixed_precision="no", device=torch.device("cpu"))
    monkeypatch.setattr(trial, "autocast", lambda accelerator: nullcontext())
    monkeypatch.setattr(agreement, "gather_object", lambda own: [*own, "its model is another"])
    with pytest.raises(DataflexError, match="rank 1 raised: its model is another"):
        selector.check_run(model.eval(), RunAhead(1, 2, 4))
    assert not asked  # to ask is collective: this rank would wait for one that is gone
    monkeypatch.setattr(agreement, "gather_object", lambda own: [*own, None])
    selector.check_run(model, RunAhead(1, 2, 4))
    assert len(asked) == 1
