"""Target sets made of the model's own answers, weighted by their rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from dataflex.core.errors import ComponentError, Problem
from dataflex.core.parameter_checks import count_or_null, flag, one_of
from dataflex.scoring import TargetSet
from dataflex.utils.logging import logger
from numpy.typing import NDArray

from dataflex_selectors.nice.policy import answer_weights, policy_target
from dataflex_selectors.nice.prompts import Prompt, first_prompt, read_prompts
from dataflex_selectors.nice.rewards import Answer
from dataflex_selectors.nice.sampling import Sampling, end_tokens, sample_answers
from dataflex_selectors.nice.settings import Reward

if TYPE_CHECKING:
    from accelerate import Accelerator

FALLBACKS = ("none", "reference")


@dataclass(frozen=True)
class Rules:
    """Which answers count.

    Attributes:
        prompts: Prompts of each set to draw afresh at each update; None for all.
        keep: Most answers of a prompt that count, the best; None for all.
        reject: Whether answers worse than the reference are dropped.
        baseline: Whether the mean reward of a prompt's answers is taken off.
        fallback: What a prompt without an answer that counts becomes: with ``none`` it is a vector of 0 in the mean
            over the prompts, ``reference`` aims at its reference answer, as LESS does.
    """

    prompts: int | None
    keep: int | None
    reject: bool
    baseline: bool
    fallback: str

    def problems(self) -> list[Problem | None]:
        """Returns what is wrong with them."""
        return [
            count_or_null("prompts", self.prompts, null="all"),
            count_or_null("keep", self.keep, null="all"),
            flag("reject", self.reject),
            flag("baseline", self.baseline),
            one_of("fallback", self.fallback, FALLBACKS),
        ]


class PolicyGoal:
    """Makes target sets out of evaluation sets, under the weights of the moment.

    The rewards of reference answers are asked for once and kept in checkpoints.

    Args:
        sets: Name -> tokenised evaluation set.
        tokenizer: Turns tokens into text.
        accelerator: The run's accelerator; None means a single process.
        sampling: How answers are drawn.
        rules: Which of them count.
        reward: What they are worth.
    """

    def __init__(
        self,
        sets: Mapping[str, Any],
        tokenizer: Any,
        accelerator: Accelerator | None,
        sampling: Sampling,
        rules: Rules,
        reward: Reward,
    ) -> None:
        self.sets, self.tokenizer, self.accelerator = sets, tokenizer, accelerator
        self.sampling, self.rules, self.reward = sampling, rules, reward
        self._references = {name: np.full(len(rows), math.nan) for name, rows in sets.items()}

    def targets(self, model: torch.nn.Module, generator: np.random.Generator, desc: str) -> dict[int, TargetSet]:
        """Returns place of the set -> target, for the sets that have one now. Collective.

        Args:
            model: The model being trained.
            generator: The update's, the same on every rank.
            desc: What messages and progress bars begin with.

        Raises:
            ComponentError: No set has one; a set has no prompts; the reward fails.
        """
        found: dict[int, TargetSet] = {}
        for place, (name, dataset) in enumerate(self.sets.items()):
            rows = np.arange(len(dataset))
            if self.rules.prompts is not None and self.rules.prompts < len(dataset):
                rows = np.sort(generator.choice(len(dataset), size=self.rules.prompts, replace=False))
            prompts = read_prompts(name, dataset, rows, self.tokenizer)
            target = self._target(model, name, prompts, int(generator.integers(2**63)), desc)
            if target is not None:
                found[place] = replace(target, evaluated=dataset)
        if not found:
            less_strict = " reject: false," if self.rules.reject else ""
            raise ComponentError(
                f"no answer to any prompt counts (each is rejected or has a reward of 0) -> set fallback: reference,"
                f"{less_strict} more samples, or a reward that tells answers apart"
            )
        return found

    def check_prompts(self, model: torch.nn.Module) -> None:
        """Refuses what every update would: a model that cannot answer, or a set without prompts. Not collective.

        Raises:
            ComponentError: One of these.
        """
        end_tokens(model, self.tokenizer)
        for name, dataset in self.sets.items():
            first_prompt(name, dataset, self.tokenizer)

    def check_reward(self) -> None:
        """Asks for the reward of one reference answer. Collective: called where :meth:`check_prompts` passed on all.

        Raises:
            ComponentError: The reward fails.
        """
        name, dataset = list(self.sets.items())[-1]
        prompt = first_prompt(name, dataset, self.tokenizer)
        self.reward([Answer(prompt.text, prompt.reference, prompt.reference)])

    def state_dict(self) -> dict[str, Any]:
        """Returns the rewards of the reference answers."""
        return dict(self._references)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned, for the sets that have as many rows as they had."""
        for name, known in self._references.items():
            if len(state.get(name, ())) == len(known):
                self._references[name] = np.array(state[name], dtype=np.float64)

    def _target(
        self, model: torch.nn.Module, name: str, prompts: Sequence[Prompt], seed: int, desc: str
    ) -> TargetSet | None:
        drawn = sample_answers(
            model,
            prompts,
            self.sampling,
            tokenizer=self.tokenizer,
            seed=seed,
            accelerator=self.accelerator,
            desc=f"{desc}, answers to {name}",
        )
        rewards = self._rewards(name, prompts, drawn)
        known = self._references[name]
        weights = [
            answer_weights(
                rewards_S,
                known[prompt.row],
                keep=self.rules.keep,
                reject=self.rules.reject,
                baseline=self.rules.baseline,
            )
            for prompt, rewards_S in zip(prompts, rewards, strict=True)
        ]
        empty = [not own.any() for own in weights]
        _report(desc, name, rewards, known[[prompt.row for prompt in prompts]], weights)
        if self.rules.fallback == "reference":
            drawn = [[p.reference_tokens] if none else own for p, own, none in zip(prompts, drawn, empty, strict=True)]
            weights = [np.ones(1) if none else own for own, none in zip(weights, empty, strict=True)]
        return policy_target(name, prompts, drawn, weights)

    def _rewards(
        self, name: str, prompts: Sequence[Prompt], drawn: Sequence[Sequence[tuple[int, ...]]]
    ) -> NDArray[np.float64]:
        """Returns the reward of each answer, (M, S), and notes those of references that are not known yet."""
        texts = [
            Answer(prompt.text, self.tokenizer.decode(list(tokens), skip_special_tokens=True).strip(), prompt.reference)
            for prompt, own in zip(prompts, drawn, strict=True)
            for tokens in own
        ]
        known = self._references[name]
        missing = [prompt for prompt in prompts if math.isnan(known[prompt.row])]
        found = self.reward([*texts, *(Answer(p.text, p.reference, p.reference) for p in missing)])
        if np.isnan(found).all():
            raise ComponentError(f"none of {len(found)} answers has a reward -> use another reward")
        known[[prompt.row for prompt in missing]] = found[len(texts) :]
        return found[: len(texts)].reshape(len(prompts), -1)


def _report(
    desc: str,
    name: str,
    rewards_MS: NDArray[np.float64],
    references_M: NDArray[np.float64],
    weights: Sequence[NDArray[np.float64]],
) -> None:
    logger.debug(
        "%s: %s: %d of %d prompts have answers that count, %d answers; mean reward %.4g, of the reference %.4g",
        desc,
        name,
        sum(bool(own.any()) for own in weights),
        len(weights),
        sum(int(np.count_nonzero(own)) for own in weights),
        np.nanmean(rewards_MS) if not np.isnan(rewards_MS).all() else math.nan,
        np.nanmean(references_M) if not np.isnan(references_M).all() else math.nan,
    )
