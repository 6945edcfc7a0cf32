"""Small pieces of Markdown that the generated pages share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_ROLE = re.compile(r":[a-z]+:`~?(?:[\w.]*\.)?(\w+)`")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table; a bar inside of a cell is escaped, and its lines become one."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n"


def prose(docstring: str) -> str:
    """Returns the text of a docstring as Markdown: double backticks and roles become code."""
    return _ROLE.sub(r"`\1`", docstring.strip()).replace("``", "`")


def one_line(text: str) -> str:
    """Returns a text with its lines joined."""
    return " ".join(text.split())


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|") if text != "---" else text
