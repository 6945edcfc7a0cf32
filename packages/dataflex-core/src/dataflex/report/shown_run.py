"""A run as the page shows it: its data, what its files say of rows, and its colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dataflex.report.run_data import RunData
from dataflex.report.seen_rows import SeenRows

Block = dict[str, Any]
"""A part of a section in the form in which the page's script draws it; ``kind`` says which it is."""

MOST_TABLE = 200
"""Most lines of a table of updates; of more, evenly spread ones are shown, and the page says so."""


@dataclass(frozen=True)
class Shown:
    """One run of the page.

    Attributes:
        run: Its data.
        seen: What its files say of rows.
        number: Its place among the page's runs.
        tone: The number of its colour.
        dash: The number of its dash pattern: runs of one colour differ in it.
        panel: Whether it has plots of its own; of many runs only some have.
        sources: Source -> the number of its colour, or ``grey``; the same for all runs of a page.
    """

    run: RunData
    seen: SeenRows
    number: int
    tone: int
    dash: int = 0
    panel: bool = True
    sources: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        id: Its anchor.
        title: Its heading.
        lead: Sentences that say what it shows.
        blocks: What it holds.
    """

    id: str
    title: str
    lead: tuple[str, ...]
    blocks: tuple[Block, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns it as the page's script takes it."""
        return {"id": self.id, "title": self.title, "lead": list(self.lead), "blocks": list(self.blocks)}


def series(
    name: str, tone: int | str, points: tuple[list[Any], list[Any]], style: str = "line", dash: int = 0
) -> Block:
    """Returns one curve. ``tone`` is a number of the palette, or ``grey``."""
    x, y = points
    return {"name": name, "tone": tone, "dash": dash, "style": style, "x": x, "y": y}


def lines(title: str, y: str, curves: Sequence[Block], **more: Any) -> Block | None:
    """Returns a plot of curves over steps; None where no curve has a point."""
    drawn = [curve for curve in curves if curve["x"]]
    return {"kind": "lines", "title": title, "x": "step", "y": y, "series": drawn, **more} if drawn else None


def held(*blocks: Block | None) -> tuple[Block, ...]:
    """Returns the blocks that there are."""
    return tuple(block for block in blocks if block is not None)


def label(kind: str) -> str:
    """Returns a kind of the trace as a person calls the component behind it."""
    names = {"select": "selector", "mix": "mixer", "order": "order", "weight": "weighter", "filter": "filter"}
    return names.get(kind, kind)
