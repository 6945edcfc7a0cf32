"""What of a row of a data file becomes tokens, by its entry in dataset_info.json: prompts and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataflex.config.checks.dataset_entry import Entry


@dataclass(frozen=True)
class RowText:
    """The text of a row.

    Attributes:
        prompt: What the model is given.
        answer: What it learns to write.
        turns: Pairs of a prompt and an answer.
    """

    prompt: str
    answer: str
    turns: int = 1


def row_text(row: Mapping[str, Any], entry: Entry, stage: str) -> RowText:
    """Returns the text of a row, as far as it has some where its format says so.

    Args:
        row: A row of the file.
        entry: The definition of the dataset.
        stage: LLaMA-Factory's ``stage``; in pre-training all text is learnt.
    """
    found = _alpaca(row, entry) if entry.formatting == "alpaca" else _messages(row, entry)
    return RowText("", found.prompt, 1) if stage == "pt" else found


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
    chosen, rejected = of("chosen"), of("rejected")
    return RowText("\n".join(filter(None, prompts)), "\n".join(filter(None, [*answers, chosen, rejected])), turns)


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
    for column in ("chosen", "rejected"):
        given = row.get(entry.columns.get(column) or "")
        if isinstance(given, Mapping):
            answers.append(_text(given.get(content)))
    return RowText("\n".join(filter(None, prompts)), "\n".join(filter(None, answers)), max(1, len(answers)))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    if isinstance(value, Mapping):
        return _text(value.get("text"))
    return "" if value is None else str(value)
