"""From rewards to the gradient that raises them.

    g(x) = sum_s R_s grad NLL(y_s | x)        over the answers kept, NLL being the sum over all tokens of y_s

is the negative policy gradient, so it takes the place of a loss's gradient (NICE, section 4). All answers are kept
(``vanilla`` in the authors' program, and in their commands); or those whose reward is better than the reference
answer's less 1e-5, and of those the best few (``topk_hard`` there). A prompt of which nothing is kept, or only rewards
of 0, has a g of 0, which counts in the mean over the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from dataflex.model.label_logits import IGNORED
from dataflex.scoring import TargetSet
from numpy.typing import NDArray

from dataflex_selectors.nice.prompts import Prompt

_SLACK = 1e-5  # so that an answer as good as the reference is kept


def answer_weights(
    rewards_S: NDArray[np.float64], reference_reward: float, *, keep: int | None, reject: bool, baseline: bool
) -> NDArray[np.float64]:
    """Returns the weight of each answer in its prompt's gradient: (S,), 0 for an answer that does not count.

    Args:
        rewards_S: (S,) rewards; NaN for an answer that has none.
        reference_reward: The reward of the reference answer; NaN where it has none, and then nothing is rejected by
            it nor kept.
        keep: Most answers that are kept, the best; the first of equal ones. None for all.
        reject: Whether answers worse than the reference are dropped.
        baseline: Whether the mean reward over all answers is taken off, which lowers the variance.
    """
    kept_S = ~np.isnan(rewards_S)
    if reject:
        kept_S &= rewards_S > reference_reward - _SLACK  # false where the reference has no reward
    best = np.argsort(np.where(kept_S, -rewards_S, np.inf), kind="stable")[: int(kept_S.sum())][:keep]
    weights_S = np.zeros(len(rewards_S))
    weights_S[best] = rewards_S[best] - (np.nanmean(rewards_S) if baseline and len(best) else 0.0)
    return weights_S


def policy_target(
    name: str,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[tuple[int, ...]]],
    weights: Sequence[NDArray[np.float64]],
) -> TargetSet | None:
    """Returns the target whose vectors are the g(x) of each prompt, or None where no answer has a weight.

    Where one has, a prompt without any is a vector of 0 in the mean over all M.

    Args:
        name: What the set is called.
        prompts: M prompts.
        answers: For each prompt, its answers.
        weights: For each prompt, the weight of each answer; those of 0 are left out.
    """
    chosen = [
        (number, prompt, answer, float(weight))
        for number, (prompt, own, given) in enumerate(zip(prompts, answers, weights, strict=True))
        for answer, weight in zip(own, given, strict=True)
        if weight != 0 and answer
    ]
    if not chosen:
        return None
    return TargetSet(
        name,
        [_row(prompt.tokens, answer) for _, prompt, answer, _ in chosen],
        weights=np.array([weight for *_, weight in chosen]),
        groups=np.array([number for number, *_ in chosen], dtype=np.int64),
        total=True,
        count=len(prompts),
        origins=np.array([prompt.row for prompt in prompts], dtype=np.int64),
    )


def _row(prompt: tuple[int, ...], answer: tuple[int, ...]) -> dict[str, list[int]]:
    tokens = [*prompt, *answer]
    return {
        "input_ids": tokens,
        "attention_mask": [1] * len(tokens),
        "labels": [IGNORED] * len(prompt) + list(answer),
    }
