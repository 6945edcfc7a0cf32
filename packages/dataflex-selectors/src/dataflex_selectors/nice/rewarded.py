"""The parameters of NICE that say how answers are drawn and rewarded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dataflex.core.errors import Problem
from dataflex.core.parameter_checks import stated
from dataflex.rows.media import first_with_media
from dataflex.scoring import read_target
from dataflex.train.selector.base_selector import Selector

from dataflex_selectors.nice.goal import PolicyGoal, Rules
from dataflex_selectors.nice.sampling import Sampling
from dataflex_selectors.nice.settings import RewardSettings
from dataflex_selectors.parts.whole_weights import whole_weights

if TYPE_CHECKING:
    from accelerate import Accelerator


class RewardsAnswers(Selector):
    """Base of the selector: the model answers prompts of the evaluation set, and each answer has a reward.

    Args:
        eval_dataset: Prompts and reference answers: a tokenised dataset, or several by name.
        tokenizer: The run's tokenizer, which turns prompts and answers into text.
        prompts: Prompts of each evaluation set drawn afresh at each update; null for all.
        samples: Answers drawn for each prompt.
        max_new_tokens: Most tokens of an answer.
        temperature: Of drawing answers.
        top_k: Most tokens to draw the next one from; 0 for all.
        top_p: Share of the probability to draw the next token from.
        reward: exact_match or contains compare with the reference answer; model asks reward_model; endpoint asks a
            judge.
        reward_model: Folder or name of a reward model, a sequence classifier with one output.
        endpoint: Base address of an OpenAI-compatible server.
        endpoint_model: Name of the model there.
        api_key_env: Name of the environment variable that holds the key; null where none is needed.
        instruction: What the judge is told, instead of the default; it must ask for a number from 0 to 10.
        show_reference: Whether the judge sees the reference answer too.
        timeout: Seconds that a request may take as a whole.
        attempts: Most requests for one mark.
        concurrency: Requests at a time.
        reject: Whether answers with less reward than the reference answer are dropped.
        keep: Most answers of a prompt that count, the best; null for all.
        baseline: Whether the mean reward of a prompt's answers is taken off each.
        fallback: What to do with a prompt none of whose answers count: with none it is a vector of 0 in the mean over
            the prompts, reference aims at its reference answer.
        sampling_tokens: Tokens of prompts and answers generated at once; null for a default that suits the device.
        **run: What every selector is given, see :class:`~dataflex.interfaces.selector.Selector`.

    Attributes:
        problems: What is wrong with these parameters: the derived class gives it to
            :func:`~dataflex.core.parameter_checks.require`, with what is wrong with its own, and then calls
            :meth:`policy_goal`.
    """

    def __init__(
        self,
        *,
        eval_dataset: Any,
        tokenizer: Any,
        prompts: int | None = None,
        samples: int = 20,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int = 50,
        top_p: float = 0.95,
        reward: str = "exact_match",
        reward_model: str | None = None,
        endpoint: str | None = None,
        endpoint_model: str | None = None,
        api_key_env: str | None = None,
        instruction: str | None = None,
        show_reference: bool = False,
        timeout: float = 60.0,
        attempts: int = 5,
        concurrency: int = 8,
        reject: bool = False,
        keep: int | None = None,
        baseline: bool = False,
        fallback: str = "none",
        sampling_tokens: int | None = None,
        **run: Any,
    ) -> None:
        super().__init__(**run)
        sampling = Sampling(samples, max_new_tokens, temperature, top_k, top_p, sampling_tokens)
        rules = Rules(prompts, keep, reject, baseline, fallback)
        rewards = RewardSettings(
            reward, reward_model, endpoint, endpoint_model, api_key_env, instruction, show_reference, timeout, attempts,
            concurrency,
        )  # fmt: skip
        target = read_target(eval_dataset)
        self.problems = stated(
            target.problem,
            *_generating(tokenizer, self.accelerator),
            *_pictured(target.sets),
            *sampling.problems(),
            *rules.problems(),
            *rewards.problems(),
        )
        self._sets, self._tokenizer = target.sets, tokenizer
        self._sampling, self._rules, self._rewards = sampling, rules, rewards

    def policy_goal(self) -> PolicyGoal:
        """Returns what the answers are drawn and rewarded with. A reward model is loaded here.

        Raises:
            ConfigError: The reward model cannot be loaded.
        """
        reward = self._rewards.build(self.accelerator)
        return PolicyGoal(self._sets, self._tokenizer, self.accelerator, self._sampling, self._rules, reward)


def _generating(tokenizer: Any, accelerator: Accelerator | None) -> list[Problem | None]:
    """Returns what keeps the run from generating answers and reading them."""
    way_out = "pass processing_class"
    missing = Problem("tokenizer", "the run has none, and prompts and answers must be read", way_out)
    whole = whole_weights(accelerator, "answers are generated with all of them")
    return [missing if tokenizer is None else None, whole]


def _pictured(sets: Mapping[str, Any]) -> list[Problem]:
    """Returns a problem where a prompt has images, which generating would not see."""
    for name, rows in sets.items():
        row = first_with_media(rows)
        if row is not None:
            why = "answers are generated from the tokens of a prompt alone"
            what = f"row {row} of the evaluation set '{name}' has images, videos or sounds, and {why}"
            return [Problem("eval_dataset", what, "evaluate on rows of text alone, or take less, which sees images")]
    return []
