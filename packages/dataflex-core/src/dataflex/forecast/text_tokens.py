"""From the text of rows to their tokens: with the model's tokenizer where it is on this machine, else by characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from dataflex.forecast.entry_texts import RowText

CHARACTERS = 4.0
"""Characters of a token, where there is no tokenizer to count them with."""
_AROUND = 12  # tokens of a template, where nothing can count them
_PROBE, _LEAST = "Every tokenizer divides this sentence.", 3
_WITHOUT = ("empty", "none", "")  # templates that add nothing


@dataclass(frozen=True)
class Counted:
    """Tokens of rows.

    Attributes:
        lengths: (n,) tokens of each row, cut as the run cuts them.
        labels: (n,) those with a label.
    """

    lengths: NDArray[np.float64]
    labels: NDArray[np.float64]


class TokenCounter:
    """Counts tokens as the run will have them.

    Args:
        path: The model.
        template: LLaMA-Factory's ``template``.
        stage: Its ``stage``.
        cutoff: Its ``cutoff_len``.
        on_prompt: Whether prompts are learnt too (``train_on_prompt``).
        trusted: ``trust_remote_code``.

    Attributes:
        by: What counts, in words.
    """

    def __init__(self, path: str, template: str, stage: str, cutoff: int, *, on_prompt: bool, trusted: bool) -> None:
        auto: Any = AutoTokenizer
        self._stage, self._cutoff, self._on_prompt = stage, cutoff, on_prompt
        self._count: Callable[[Sequence[str]], list[int]] = _by_characters
        self.by, self._around = f"{CHARACTERS:g} characters a token, as the tokenizer of {path} is not here", _AROUND
        try:
            tokenizer = auto.from_pretrained(path, local_files_only=True, trust_remote_code=trusted)
        except (OSError, ValueError, ImportError, KeyError, TypeError):
            return

        def count(texts: Sequence[str]) -> list[int]:
            return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

        if count([_PROBE])[0] >= _LEAST:  # a folder without a vocabulary gives a tokenizer that knows no word
            self._count, self.by = count, "the model's tokenizer"
            self._around = _template_tokens(tokenizer, count, template)

    def counted(self, texts: Sequence[RowText]) -> Counted:
        """Returns the tokens of rows; those that are packed afterwards are cut all the same."""
        prompts = np.array(self._count([text.prompt for text in texts]), dtype=np.float64)
        answers = np.array(self._count([text.answer for text in texts]), dtype=np.float64) + 1  # the end of the text
        if self._stage == "pt":
            return Counted(answers, answers)
        prompts += np.array([text.media for text in texts], dtype=np.float64)
        turns = np.array([text.turns for text in texts], dtype=np.float64)
        prompts = prompts + self._around * turns
        answers = answers + turns - 1
        whole = prompts + answers
        kept = np.minimum(1.0, self._cutoff / np.maximum(whole, 1.0))  # prompt and answer are cut alike
        return Counted(whole * kept, (whole if self._on_prompt else answers) * kept)


def _by_characters(texts: Sequence[str]) -> list[int]:
    return [round(len(text) / CHARACTERS) for text in texts]


def _template_tokens(tokenizer: Any, count: Callable[[Sequence[str]], list[int]], template: str) -> int:
    """Returns about how many tokens the template puts around a prompt and its answer, without the end of the text."""
    if template in _WITHOUT:
        return 0
    if tokenizer.chat_template is not None and template not in ("default", "alpaca", "vicuna"):
        turn = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
        text = tokenizer.apply_chat_template(turn, tokenize=False)
        return max(0, count([text])[0] - 3)
    return count(["Human: \nAssistant: "])[0]
