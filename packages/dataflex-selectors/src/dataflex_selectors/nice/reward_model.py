"""The reward of an answer: the output of a reward model, a sequence classifier with one output."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from dataflex.core.errors import ConfigError
from dataflex.scoring import RowBatch, RowPass
from dataflex.scoring.autocast import autocast
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dataflex_selectors.nice.rewards import Answer

if TYPE_CHECKING:
    from accelerate import Accelerator

_NO_LIMIT = 10**6  # tokenizers without a longest input say so with a huge number


class RewardModel:
    """The output of a reward model for prompt and answer.

    It is loaded when training begins, so that a wrong path is an error at once, and stays in the CPU's memory between
    updates. It has a tokenizer of its own: prompt and answer go to it as text, through its chat template where it has
    one.

    Args:
        path: A folder or a name on the model hub.
        accelerator: The run's accelerator, for the device and the ranks, which share the answers.
        token_budget: Most tokens of a batch; None for a default that suits the device.

    Raises:
        ConfigError: It cannot be loaded, or is no reward model.
    """

    def __init__(self, path: str, accelerator: Accelerator | None, token_budget: int | None = None) -> None:
        self._accelerator, self._token_budget = accelerator, token_budget
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path, padding_side="right", truncation_side="left")
            self._model, loading = AutoModelForSequenceClassification.from_pretrained(path, output_loading_info=True)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"reward_model of the nice selector: '{path}' cannot be loaded: {error} -> name a folder or a model "
                "for AutoModelForSequenceClassification"
            ) from error
        problem = _problem(self._model, loading)
        if problem:
            raise ConfigError(f"reward_model of the nice selector: '{path}' {problem} -> name a reward model")
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model.config.pad_token_id = self._tokenizer.pad_token_id
        self._model.eval().requires_grad_(False)
        self._taken = inspect.signature(self._model.forward).parameters.keys()

    def __call__(self, answers: Sequence[Answer]) -> NDArray[np.float64]:
        """Returns the model's output for each answer. Collective."""
        rows = RowPass(
            [self._tokens(answer) for answer in answers],
            self._padded,
            self._accelerator,
            token_budget=self._token_budget,
            desc="nice: rewards",
        )
        home = self._model.device
        self._model.to(home if self._accelerator is None else self._accelerator.device)
        try:
            return rows.values(self._model, self._outputs).astype(np.float64)
        finally:
            self._model.to(home)

    @torch.no_grad()
    def _outputs(self, batch: RowBatch) -> torch.Tensor:
        with autocast(self._accelerator):
            logits_B1: torch.Tensor = self._model(**batch.inputs).logits
        return logits_B1[:, 0].float()

    def _tokens(self, answer: Answer) -> dict[str, Any]:
        longest = min(self._tokenizer.model_max_length, _NO_LIMIT)
        if self._tokenizer.chat_template is None:
            return dict(self._tokenizer(answer.prompt, answer.text, truncation=True, max_length=longest))
        turns = [{"role": "user", "content": answer.prompt}, {"role": "assistant", "content": answer.text}]
        text = self._tokenizer.apply_chat_template(turns, tokenize=False)
        return dict(self._tokenizer(text, add_special_tokens=False, truncation=True, max_length=longest))

    def _padded(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        batch = {}
        for key in self._taken & rows[0].keys():  # not token_type_ids for a model that knows no types
            fill = self._tokenizer.pad_token_id if key == "input_ids" else 0
            batch[key] = torch.tensor([[*row[key], *[fill] * (longest - len(row[key]))] for row in rows])
        return batch


def _problem(model: Any, loading: dict[str, Any]) -> str:
    if model.config.num_labels != 1:
        return f"is a classifier with {model.config.num_labels} outputs and not one"
    if loading["missing_keys"]:
        return f"has no weights for {sorted(loading['missing_keys'])[0]}, which would be random"
    return ""
