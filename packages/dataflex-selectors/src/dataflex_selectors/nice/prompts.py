"""Prompts and reference answers, read out of tokenised rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dataflex.core.errors import ComponentError
from dataflex.model.label_logits import IGNORED


@dataclass(frozen=True)
class Prompt:
    """What the model is asked, and an answer to it.

    Attributes:
        row: The row of the evaluation set that it comes from.
        tokens: Token ids of the prompt, as the model sees it: with the template's tokens.
        reference_tokens: Token ids of the reference answer, with its end token where it has one.
        text: The prompt without special tokens.
        reference: The reference answer without special tokens.
    """

    row: int
    tokens: tuple[int, ...]
    reference_tokens: tuple[int, ...]
    text: str
    reference: str


def read_prompts(name: str, dataset: Any, rows: Iterable[int], tokenizer: Any) -> list[Prompt]:
    """Returns a prompt for each row that has one: those without labels or without a token before them are left out.

    A row of several turns gives its first: the prompt is what stands before the first label, the reference the labels
    up to the next token without one.

    Args:
        name: Of the set, for messages.
        dataset: Tokenised rows with ``input_ids`` and ``labels``, one for each token.
        rows: Row numbers.
        tokenizer: Turns tokens into text.

    Raises:
        ComponentError: No row has a prompt and an answer.
    """
    return list(_prompts(name, dataset, rows, tokenizer))


def first_prompt(name: str, dataset: Any, tokenizer: Any) -> Prompt:
    """Returns the first of :func:`read_prompts` of a whole set, and reads no row after it.

    Raises:
        ComponentError: No row has a prompt and an answer.
    """
    return next(_prompts(name, dataset, range(len(dataset)), tokenizer))


def _prompts(name: str, dataset: Any, rows: Iterable[int], tokenizer: Any) -> Iterator[Prompt]:
    some = False
    for row in rows:
        asked, told = _split(dataset[int(row)])
        if asked and told:
            some = True
            yield Prompt(int(row), asked, told, _text(tokenizer, asked), _text(tokenizer, told))
    if not some:
        raise ComponentError(
            f"none of the rows of the evaluation set '{name}' has a prompt, tokens without a label, and "
            "then an answer, tokens with one -> evaluate on instruction data, leave out train_on_prompt, or use a "
            "larger cutoff_len if it cuts the answers off"
        )


def _split(row: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    tokens, labels = np.asarray(row["input_ids"]), np.asarray(row["labels"])
    labelled = np.flatnonzero(labels != IGNORED)
    if not len(labelled):
        return (), ()
    start = labelled[0]
    end = start + np.argmin(np.append(labels[start:] != IGNORED, False))
    return _ids(tokens[:start]), _ids(tokens[start:end])


def _ids(tokens: Any) -> tuple[int, ...]:
    return tuple(int(token) for token in tokens)


def _text(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
