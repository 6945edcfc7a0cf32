"""The answers that count are the right ones, and the target they make is the policy gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dataflex.scoring import RowPass, per_sample_gradients, target_means
from dataflex.testing import pad_collate, tiny_model
from dataflex_selectors.nice.policy import answer_weights, policy_target
from dataflex_selectors.nice.prompts import Prompt

NAN = math.nan


def weights(rewards, reference=0.0, **options):
    rules = {"keep": 10, "reject": True, "baseline": False} | options
    return answer_weights(np.array(rewards, dtype=np.float64), reference, **rules).tolist()


def test_answers_worse_than_the_reference_are_dropped_and_those_as_good_are_kept():
    assert weights([0.5, 0.2, 0.5 - 2e-5, 0.5 - 5e-6, 0.9], 0.5) == [0.5, 0, 0, 0.5 - 5e-6, 0.9]
    assert weights([0.5, 0.2, 0.9], 0.5, reject=False) == [0.5, 0.2, 0.9]


def test_of_those_the_best_are_kept_the_first_of_equal_ones():
    assert weights([1, 3, 2, 3, 3], keep=2) == [0, 3, 0, 3, 0]
    assert weights([1, 3, 2], keep=9) == [1, 3, 2]
    assert weights(list(range(30)), keep=None) == list(range(30))


def test_answers_without_a_reward_never_count():
    assert weights([NAN, 2, NAN], keep=3) == [0, 2, 0]
    assert weights([NAN, 2, NAN], keep=3, reject=False, baseline=True) == [0, 0, 0]
    assert weights([NAN, NAN]) == [0, 0]


def test_without_a_reward_of_the_reference_nothing_can_be_rejected_by_it_so_nothing_is_kept():
    assert weights([1, 2], NAN) == [0, 0]
    assert weights([1, 2], NAN, reject=False) == [1, 2]


def test_the_baseline_is_the_mean_over_all_answers_kept_or_not():
    assert weights([1, 2, 6], 2.0, baseline=True) == [0, -1, 3]


def prompt(row, tokens, reference=(7,)):
    return Prompt(row, tuple(tokens), tuple(reference), "", "")


PROMPTS = [prompt(0, (5, 6)), prompt(4, (8,)), prompt(5, (9, 10, 11))]
ANSWERS = [[(20, 21, 2), (22, 2)], [(23, 24, 25)], [(26, 2), (27, 28, 29, 2)]]
WEIGHTS = [np.array([1.0, 0.0]), np.array([0.0]), np.array([0.5, 2.0])]


def test_a_target_row_is_prompt_and_answer_with_labels_on_the_answer():
    target = policy_target("eval", PROMPTS, ANSWERS, WEIGHTS)
    assert target.dataset[0] == {
        "input_ids": [5, 6, 20, 21, 2],
        "attention_mask": [1, 1, 1, 1, 1],
        "labels": [-100, -100, 20, 21, 2],
    }
    assert len(target.dataset) == 3
    assert target.weights.tolist() == [1.0, 0.5, 2.0]
    assert target.groups.tolist() == [0, 2, 2]
    assert target.total


def test_no_answer_that_counts_makes_no_target():
    assert policy_target("eval", PROMPTS, ANSWERS, [np.zeros(len(own)) for own in ANSWERS]) is None


def nll_gradient(model, tokens, answer):
    """The oracle: the gradient of -log p(answer | tokens), written out."""
    ids = torch.tensor([[*tokens, *answer]])
    log_p = model(ids).logits[0, :-1].log_softmax(-1)
    nll = -sum(log_p[len(tokens) + i - 1, token] for i, token in enumerate(answer))
    return torch.cat([g.flatten() for g in torch.autograd.grad(nll, list(model.parameters()))])


@pytest.mark.parametrize("budget", [1, 1000])
def test_the_target_is_the_mean_of_the_prompts_normalised_policy_gradients(budget):
    model = tiny_model().eval()
    target = policy_target("eval", PROMPTS, ANSWERS, WEIGHTS)
    with per_sample_gradients(model) as gradients:
        rows = RowPass(None, pad_collate, token_budget=budget, progress=False)
        means = target_means(gradients, model, [target], rows)
        names = [route.name for route in gradients.routes]
    found = dict(zip(names, (part[0] for part in means), strict=True))
    vectors = []
    for own, answers, given in zip(PROMPTS, ANSWERS, WEIGHTS, strict=True):
        if given.any():
            g = sum(w * nll_gradient(model, own.tokens, answer) for answer, w in zip(answers, given, strict=True))
            vectors.append(g / g.norm())
    expected = torch.stack(vectors).sum(0) / 3  # the prompt without an answer that counts is a vector of 0
    flat = torch.cat([found[name].flatten() for name, _ in model.named_parameters()])
    torch.testing.assert_close(flat, expected, rtol=1e-4, atol=1e-6)
    mean_loss_instead = torch.stack(
        [nll_gradient(model, p.tokens, a[0]) / len(a[0]) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    )
    assert not torch.allclose(flat, mean_loss_instead.mean(0), atol=1e-3)
