"""Which reward is used, and its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from dataflex.core.errors import Problem
from dataflex.core.parameter_checks import count, flag, model_or_null, one_of, positive
from dataflex.utils.logging import logger
from numpy.typing import NDArray

from dataflex_selectors.nice.chat import ChatEndpoint, readable_on_the_way, usable_key, valid_url
from dataflex_selectors.nice.judge import Judge
from dataflex_selectors.nice.rewards import Answer, contains, exact_match

if TYPE_CHECKING:
    from accelerate import Accelerator

REWARDS = ("exact_match", "contains", "model", "endpoint")

Reward = Callable[[Sequence[Answer]], NDArray[np.float64]]
"""``reward(answers) -> (n,)``: higher is better, NaN for none; the same on every rank, all of which call it."""


@dataclass(frozen=True)
class RewardSettings:
    """The user's parameters of the reward; see :class:`~dataflex_selectors.nice.nice_selector.NiceSelector`."""

    reward: str
    reward_model: str | None
    endpoint: str | None
    endpoint_model: str | None
    api_key_env: str | None
    instruction: str | None
    show_reference: bool
    timeout: float
    attempts: int
    concurrency: int

    def problems(self) -> list[Problem | None]:
        """Returns what is wrong with them: a value out of range, a parameter that is missing or of another reward."""
        found = [
            one_of("reward", self.reward, REWARDS),
            self._belongs("reward_model", self.reward_model, "model", required=True)
            or model_or_null("reward_model", self.reward_model),
            self._belongs("endpoint", self.endpoint, "endpoint", required=True),
            self._belongs("endpoint_model", self.endpoint_model, "endpoint", required=True),
            self._belongs("api_key_env", self.api_key_env, "endpoint", required=False),
            self._belongs("instruction", self.instruction, "endpoint", required=False),
            flag("show_reference", self.show_reference),
            positive("timeout", self.timeout),
            count("attempts", self.attempts),
            count("concurrency", self.concurrency),
        ]
        if self.reward == "endpoint":
            found.append(valid_url("endpoint", self.endpoint) if self.endpoint is not None else None)
            found.append(usable_key("api_key_env", self.api_key_env))
        return found

    def build(self, accelerator: Accelerator | None) -> Reward:
        """Returns the reward. A reward model is loaded here.

        Raises:
            ConfigError: The reward model cannot be loaded.
        """
        match self.reward:
            case "exact_match":
                return exact_match
            case "contains":
                return contains
            case "model":
                from dataflex_selectors.nice.reward_model import RewardModel  # here: it imports much

                assert self.reward_model is not None
                return RewardModel(self.reward_model, accelerator)
        assert self.endpoint is not None
        assert self.endpoint_model is not None
        host = readable_on_the_way(self.endpoint)
        if self.api_key_env is not None and host is not None:
            logger.warning(
                "endpoint: the key in %s goes to %s over plain http, where others can read it on the way -> use https",
                self.api_key_env,
                host,
            )
        endpoint = ChatEndpoint(self.endpoint, self.endpoint_model, self.api_key_env, self.timeout, self.attempts)
        return Judge(
            endpoint,
            accelerator,
            instruction=self.instruction,
            shows_reference=self.show_reference,
            concurrency=self.concurrency,
        )

    def _belongs(self, key: str, found: object, reward: str, required: bool) -> Problem | None:
        """Returns a problem where a text is missing, or set for another reward. It is not repeated: it may be a key."""
        if found is None:
            missing = required and self.reward == reward
            return Problem(key, f"it has no value, and reward: {reward} needs one") if missing else None
        if not isinstance(found, str) or not found.strip():
            return Problem(key, "it is no text, or an empty one")
        if self.reward != reward and self.reward in REWARDS:
            return Problem(key, f"it is of no use with reward: {self.reward}", f"leave it out, or set reward: {reward}")
        return None
