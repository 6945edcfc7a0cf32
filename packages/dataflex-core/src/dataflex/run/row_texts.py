"""``dataflex_rows.jsonl``: the text of rows, so that a person can see what was chosen.

The first line says of which run and of how many rows; then each row stands at most once. A resumed run goes on with the
file. What a row says is data of the user's: it is decoded without special tokens and cut, and not changed otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dataflex.core.files import ROWS
from dataflex.rows.columns import Tokens
from dataflex.run.json_lines import append, read_lines, rewrite

VERSION = 1
CHARACTERS = 2000
"""Of a text, at most."""
_TOKENS = 4 * CHARACTERS  # that are decoded: a character has at most four bytes, and a token at least one
_LABEL = len("\n\nrejected: ")  # the longest that stands before a part
MOST = 5000
"""Rows whose text is written by a run, at most, where these are not all rows."""


@runtime_checkable
class Decodes(Protocol):
    """What turns tokens into text: a tokenizer, or a processor that has one."""

    def decode(self, token_ids: Any, **kwargs: Any) -> Any:
        """Returns the text of token numbers."""


def text_of(tokenizer: Decodes, ids: Sequence[int] | NDArray[Any], known: int | None = None) -> tuple[str, bool]:
    """Returns the text of a row without special tokens, and whether it goes on.

    Args:
        tokenizer: Decodes it.
        ids: (T,) tokens; numbers that no token has, as placeholders of pictures, are left out.
        known: How many tokens there are; None where that is not known.
    """
    head = np.asarray(ids[:_TOKENS])
    there = (head >= 0) if known is None else (head >= 0) & (head < known)
    text = str(tokenizer.decode(head[there].tolist(), skip_special_tokens=True))
    return text[:CHARACTERS], len(text) > CHARACTERS or len(ids) > _TOKENS


class RowTexts:
    """The file while a run goes on. On one rank.

    Args:
        folder: The run's folder.
        tokenizer: Decodes rows.

    Attributes:
        written: The rows whose text is in the file.
    """

    def __init__(self, folder: str | Path, tokenizer: Decodes) -> None:
        self._path, self._tokenizer = Path(folder) / ROWS, tokenizer
        self.written: set[int] = set()
        self._known = len(tokenizer) if isinstance(tokenizer, Sized) else None
        self._targets: set[tuple[str, int]] = set()

    def begin(self, run: str, rows: int | None) -> None:
        """Goes on with the file where it is of this run, and begins anew otherwise.

        Args:
            run: The run.
            rows: Rows of the train dataset; None where that is not known.
        """
        header = {"version": VERSION, "run": run, "rows": rows, "characters": CHARACTERS}
        lines, unreadable = read_lines(self._path)
        kept = lines[1:] if lines and lines[0] == header else []
        if not kept or unreadable or not self._path.read_bytes().endswith(b"\n"):
            rewrite(self._path, [header, *kept])
        self.written = {line["row"] for line in kept if isinstance(line.get("row"), int)}
        self._targets = {(str(line.get("set")), line["target"]) for line in kept if isinstance(line.get("target"), int)}

    def add(self, rows: Iterable[tuple[int, str, Tokens | str]]) -> None:
        """Writes rows that are not in the file yet.

        Args:
            rows: The number of each, its source, and its tokens: (T,), empty for a row of which nothing is written; or
                those of its parts, each of which is written under its name. A prompt that is tokenised when answers to
                it are sampled is its text.
        """
        lines = []
        for row, source, ids in rows:
            if row not in self.written and len(ids):
                self.written.add(row)
                lines.append({"row": row, "source": source, **self._text(ids)})
        append(self._path, lines)

    def sort(self) -> None:
        """Puts the lines in the order of their rows, those of targets last."""
        lines, _ = read_lines(self._path)
        ordered = sorted(lines[1:], key=lambda line: (0, line["row"]) if isinstance(line.get("row"), int) else (1, 0))
        if ordered != lines[1:]:
            rewrite(self._path, [lines[0], *ordered])

    def add_target(self, name: str, target: int, ids: Sequence[int] | NDArray[Any]) -> None:
        """Writes a target row, unless it is in the file.

        Args:
            name: The evaluation set.
            target: Its number in the set.
            ids: (T,) its tokens.
        """
        if (name, target) not in self._targets:
            self._targets.add((name, target))
            append(self._path, [{"set": name, "target": target, **self._text(ids)}])

    def _text(self, ids: Sequence[int] | Tokens | str) -> dict[str, Any]:
        if isinstance(ids, str):
            return {"tokens": None, "text": ids[:CHARACTERS], "cut": len(ids) > CHARACTERS}
        if isinstance(ids, Mapping):
            parts = {name: text_of(self._tokenizer, part, self._known) for name, part in ids.items()}
            text = _labelled({name: part for name, (part, _) in parts.items()})
            cut = len(text) > CHARACTERS
            if cut:  # a long prompt leaves room for both answers
                room = CHARACTERS // len(parts) - _LABEL
                text = _labelled({name: part[:room] for name, (part, _) in parts.items()})
            goes_on = cut or any(is_longer for _, is_longer in parts.values())
            return {"tokens": sum(map(len, ids.values())), "text": text, "cut": goes_on}
        text, cut = text_of(self._tokenizer, ids, self._known)
        return {"tokens": len(ids), "text": text, "cut": cut}


def _labelled(parts: Mapping[str, str]) -> str:
    return "\n\n".join(f"{name}: {part}" for name, part in parts.items())
