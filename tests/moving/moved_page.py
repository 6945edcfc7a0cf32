"""The tables of docs/moving-from-dataflex.md, written from the table in code.

    python tests/moving/moved_page.py    # writes them into the page

A test compares them with what the page has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from dataflex.config.moved.moved_table import (
    NOT_SAID,
    REFUSED,
    RENAMED,
    SAME,
    UNUSED,
    Move,
    Moves,
    absent,
    components,
    keys,
)
from dataflex.config.moved.moved_values import filled, shown
from dataflex.core.kinds import BY_SECTION
from dataflex.discovery.catalog import lookup

PAGE = Path(__file__).parents[2] / "docs" / "moving-from-dataflex.md"
MARKS = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def cell(text: str) -> str:
    """Returns a text for a cell."""
    return text.replace("|", "\\|")


def here(move: Move) -> str:
    """Returns what becomes of a key or parameter."""
    if move.fate == SAME:
        return "as is"
    if move.fate == RENAMED:
        return f"`{move.to}`"
    values = ", ".join(f"`{shown(value)}`" for value in move.unused_as)
    return "no effect" if move.fate == UNUSED else f"no effect as {values}, else refused" if values else "refused"


def remarks(move: Move, default: object) -> Iterator[str]:
    """Yields what else is to be known of it."""
    for there, ours in move.values:
        yield f"`{shown(there)}` is `{shown(ours)}`"
    for there, become in move.becomes:
        yield f"`{shown(there)}` is `{', '.join(f'{k}: {v}' for k, v in become.items())}`"
    for name, value in move.adds.items():
        yield f"with `{name}: {shown(value)}`"
    if move.fate == REFUSED and move.why and move.why in move.refused:
        pass  # said once
    elif move.at_most:
        yield f"no effect up to the step of the first update: {move.why}"
    elif move.equal:
        yield f"no effect where `{move.equal}` says the same"
    elif move.why:
        yield move.why
    if move.refused:
        found = ", ".join(f"`{shown(value)}`" for value in move.refused_as)
        reason = filled(move.refused, "VALUE", 0).removeprefix("found VALUE, and ").removesuffix(", at step 0")
        yield f"{f'refused as {found}: ' if found else ''}{reason}. Write: {filled(move.instead, 'VALUE', 0)}"
    for value, said in move.unlike:
        yield f"`{shown(value)}` is {said}; a warning says so"
    if move.default is not NOT_SAID:
        there = move.converted(move.default)
        for times in move.times.values():
            there = there * times
        if move.here or default != there:
            yield f"not given, it is {shown(there)} there and {move.here or shown(default)} here; a warning says so"


def rows(moves: Moves, defaults: dict[str, object]) -> Iterator[str]:
    """Yields the rows of a table."""
    yield "| there | here | |"
    yield "| --- | --- | --- |"
    for move in moves.values():
        said = "; ".join(remarks(move, defaults.get(move.ours)))
        yield f"| `{move.name}` | {here(move)} | {cell(said)} |"


def tables() -> dict[str, str]:
    """Returns the name of a table -> its text."""
    found = {"keys": "\n".join(rows(keys(), {}))}
    for section, body in components().items():
        parts = []
        for component, moves in body.items():
            info = lookup(BY_SECTION[section], component)
            assert info is not None
            parts.append(
                "\n".join([f"### {BY_SECTION[section].name} `{component}`", "", *rows(moves, info.parameters)])
            )
        found[section] = "\n\n".join(parts)
    missing = ["| there | |", "| --- | --- |"]
    for section, body in absent().items():
        missing += [f"| {BY_SECTION[section].name} `{name}` | refused; {cell(near)} |" for name, near in body.items()]
    found["absent"] = "\n".join(missing)
    return found


def written(text: str) -> str:
    """Returns the page with its tables as the code has them."""
    made = tables()
    return MARKS.sub(lambda found: f"{found[1]}\n{made[found[2]]}\n\n{found[3]}", text)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
