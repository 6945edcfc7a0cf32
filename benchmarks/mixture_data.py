"""Three domains of different entropy as rows of equal length, from text that every Python has or from files.

Without files they are read from the standard library: ``tables``, the character maps of :mod:`encodings`, of which one
line nearly tells the next; ``code``, the source of some eighty modules without its docstrings; and ``prose``, these
docstrings and the pages of ``help()``. Tables are the easiest to predict and prose is the hardest.
"""

from __future__ import annotations

import encodings
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from dataflex.testing import tiny_tokenizer
from dataflex.workspace.library_text import Piece, harvest

HELD_OUT = 8
"""One document of so many is held out: a module, a page of help, a character map, a record of a file."""

TEST_ROWS = 192
"""Held-out rows that the models are measured on, at most, of each domain."""

Row = dict[str, list[int]]


@dataclass(frozen=True)
class Domains:
    """The rows of all domains.

    Attributes:
        train: Domain -> rows of equal length.
        test: Domain -> held-out rows of the same length, from other documents.
        vocabulary: Tokens of the tokenizer.
    """

    train: dict[str, list[Row]]
    test: dict[str, list[Row]]
    vocabulary: int


def library_documents() -> dict[str, list[str]]:
    """Returns domain -> documents of the standard library, the same for the same interpreter."""
    found = harvest().sources
    maps = sorted(Path(encodings.__file__).parent.glob("*.py"))
    tables = (text.partition("decoding_table = ")[2] for text in (file.read_text(encoding="utf-8") for file in maps))
    return {
        "tables": [table for table in tables if table],
        "code": _by_source(found["code"]),
        "prose": _by_source(found["docstrings"]) + _by_source(found["prose"]),
    }


def file_documents(path: Path) -> list[str]:
    """Returns the documents of a file: records of a ``.json`` or ``.jsonl``, else what stands between blank lines.

    Args:
        path: Records have a ``text``, or the ``instruction``, ``input`` and ``output`` of the alpaca format.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        records = [json.loads(line) for line in text.splitlines() if line.strip()]
    elif path.suffix == ".json":
        records = json.loads(text)
    else:
        return [block for block in text.split("\n\n") if block.strip()]
    fields = ("text", "instruction", "input", "output")
    return ["\n".join(record[field] for field in fields if record.get(field)) for record in records]


def domains(documents: Mapping[str, Sequence[str]], length: int, vocabulary: int) -> Domains:
    """Returns the rows of documents. The tokenizer is trained on those that are not held out.

    Args:
        documents: Domain -> its documents.
        length: Tokens of a row.
        vocabulary: Tokens of the tokenizer.
    """
    held_out = {name: texts[::HELD_OUT] for name, texts in documents.items()}
    kept = {name: [t for n, t in enumerate(texts) if n % HELD_OUT] for name, texts in documents.items()}
    tokenizer = tiny_tokenizer((text for texts in kept.values() for text in texts), vocab_size=vocabulary)

    def rows(texts: Iterable[str]) -> list[Row]:
        read = tokenizer(list(texts), verbose=False)["input_ids"]  # longer than a model takes, until they are cut
        tokens = [token for text in read for token in (*text, tokenizer.eos_token_id)]
        starts = range(0, len(tokens) - length + 1, length)
        return [_row(tokens[start : start + length]) for start in starts]

    return Domains(
        train={name: rows(texts) for name, texts in kept.items()},
        test={name: _spread(rows(texts), TEST_ROWS) for name, texts in held_out.items()},
        vocabulary=len(tokenizer),
    )


def _by_source(pieces: Sequence[Piece]) -> list[str]:
    sources = groupby(pieces, key=lambda piece: piece.origin)
    return ["\n\n".join(piece.text for piece in found) for _, found in sources]


def _row(tokens: list[int]) -> Row:
    return {"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": list(tokens)}


def _spread(rows: Sequence[Row], count: int) -> list[Row]:
    """Returns ``count`` rows at equal distances, from all documents; all rows where there are fewer."""
    if len(rows) <= count:
        return list(rows)
    return [rows[number * len(rows) // count] for number in range(count)]
