"""What of a row of a data file becomes tokens, by its entry in dataset_info.json: prompts and answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dataflex.config.checks.dataset_entry import Entry
from dataflex.forecast.stage_passes import PAIRS


@dataclass(frozen=True)
class RowText:
    """The text of a row.

    Attributes:
        prompt: What the model is given.
        answer: What it learns to write.
        turns: Pairs of a prompt and an answer.
        media: Tokens of its images.
    """

    prompt: str
    answer: str
    turns: int = 1
    media: int = 0


def row_text(row: Mapping[str, Any], entry: Entry, stage: str) -> RowText:
    """Returns the text of a row, as far as it has some where its format says so.

    Args:
        row: A row of the file.
        entry: The definition of the dataset.
        stage: LLaMA-Factory's ``stage``; in pre-training all text is learnt. Of a pair, what stands before the answers
            comes twice.
    """
    found = _alpaca(row, entry) if entry.formatting == "alpaca" else _messages(row, entry)
    if stage == "pt":
        return RowText("", found.prompt, 1)
    if stage not in PAIRS:
        return found
    before = _joined([found.prompt, found.answer])
    turns = found.turns + (1 if found.answer and entry.formatting != "alpaca" else 0)  # the last one has two answers
    return RowText(_joined([before, before]), _joined(_ranked(row, entry)), 2 * turns)


def _alpaca(row: Mapping[str, Any], entry: Entry) -> RowText:
    def of(column: str) -> str:
        name = entry.columns.get(column)
        return _text(row.get(name)) if name else ""

    prompts, answers, turns = [of("system"), of("prompt"), of("query")], [of("response")], 1
    name = entry.columns.get("history")
    for pair in (row.get(name) if name else None) or []:
        if isinstance(pair, list | tuple) and len(pair) == 2:
            prompts.append(_text(pair[0]))
            answers.append(_text(pair[1]))
            turns += 1
    return RowText(_joined(prompts), _joined(answers), turns)


def _messages(row: Mapping[str, Any], entry: Entry) -> RowText:
    role, content, learnt = (entry.tags.get(tag) for tag in ("role_tag", "content_tag", "assistant_tag"))
    prompts: list[str] = []
    answers: list[str] = []
    name = entry.columns.get("system")
    if name:
        prompts.append(_text(row.get(name)))
    messages = row.get(entry.columns.get("messages") or "messages")
    for message in messages if isinstance(messages, list | tuple) else ():
        if isinstance(message, Mapping):
            (answers if message.get(role) == learnt else prompts).append(_text(message.get(content)))
    return RowText(_joined(prompts), _joined(answers), max(1, len(answers)))


def _ranked(row: Mapping[str, Any], entry: Entry) -> list[str]:
    """Returns the two answers of a pair, as far as they are there."""
    given = [row.get(entry.columns.get(column) or "") for column in ("chosen", "rejected")]
    content = entry.tags.get("content_tag") or ""
    return [_text(answer.get(content) if isinstance(answer, Mapping) else answer) for answer in given]


def _joined(texts: Iterable[str]) -> str:
    return "\n".join(filter(None, texts))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    if isinstance(value, Mapping):
        return _text(value.get("text"))
    return "" if value is None else str(value)
