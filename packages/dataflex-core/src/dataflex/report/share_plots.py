"""Shares of the sources over the run, planned against realised, in rows and in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.report.record_lines import mapping, number, numbers
from dataflex.report.run_data import RunData
from dataflex.report.seen_rows import SeenRows
from dataflex.report.shown_run import Block, Section, Shown
from dataflex.report.thinned import evenly, plain

DRAWN = 8
"""Most sources with a colour of their own; the smallest of more are drawn together."""
_STRETCHES = 400
_MARKS = 60  # updates: the edges of the areas show more of them well enough


def section(runs: Sequence[Shown]) -> Section | None:
    """Returns the section; None where no run has several sources."""
    blocks = tuple(block for shown in runs if shown.panel and (block := _stack(shown, len(runs) == 1)) is not None)
    if not blocks:
        return None
    lead = ["Areas are the rows that were planned to be trained on, source by source."]
    if any(block["planned"] for block in blocks):
        lead.append("Dashed lines are the shares that the mixer had asked for.")
    return Section("shares", "Shares of the sources", tuple(lead), blocks)


def source_order(seen: SeenRows) -> list[int]:
    """Returns the places of the sources, those with the most planned rows first."""
    total = sum((stretch.sources for stretch in seen.stretches), np.zeros(len(seen.sources), dtype=np.int64))
    return np.argsort(-total, kind="stable").tolist() if len(total) == len(seen.sources) else []


def source_tones(seen: Sequence[SeenRows]) -> dict[str, int | str]:
    """Returns source -> the number of its colour, the same in every plot of every run; after the first 8, grey."""
    names = dict.fromkeys(each.sources[place].name for each in seen for place in source_order(each))
    return {name: rank if rank < DRAWN else "grey" for rank, name in enumerate(names)}


def _stack(shown: Shown, alone: bool) -> Block | None:
    run, seen = shown.run, shown.seen
    names = [source.name for source in seen.sources]
    if len(names) < 2 or not seen.stretches:
        return None
    rows_US = np.array([stretch.sources for stretch in seen.stretches], dtype=np.float64)
    steps = [stretch.step for stretch in seen.stretches]
    planned = _planned(run, names, steps)
    order = source_order(seen)
    drawn = order if len(names) <= DRAWN else order[:DRAWN]
    rest = order[len(drawn) :]
    kept = evenly(len(steps), _STRETCHES)
    tokens_US = _tokens(run, names, steps)
    shown_names = [seen.sources[place].shown for place in drawn] + ([f"{len(rest)} other sources"] if len(rest) else [])

    def together(values_US: NDArray[np.float64]) -> list[list[Any]]:
        total = values_US.sum(axis=1, keepdims=True)
        share_US = np.divide(values_US, total, out=np.full_like(values_US, np.nan), where=total > 0)[kept]
        columns = [share_US[:, place] for place in drawn] + ([share_US[:, rest].sum(axis=1)] if len(rest) else [])
        return [plain(column, 4) for column in columns]

    unit = str(run.config.get("mixture_unit") or "rows")
    return {
        "kind": "stack",
        "title": "" if alone else "Shares of the sources",
        "x": plain([steps[place] for place in kept]),
        "end": max(run.total_steps or 0, run.step, steps[-1] + 1)
        if run.state == "finished"
        else max(run.step, steps[-1] + 1),
        "names": shown_names,
        "tones": [*(shown.sources.get(names[place], "grey") for place in drawn), *(["grey"] if rest else [])],
        "units": {"rows": together(rows_US)} | ({"tokens": together(tokens_US)} if tokens_US is not None else {}),
        "planned": {unit: together(planned)} if planned is not None else {},
        "marks": {"tone": "grey", "x": plain(run.update_steps if len(run.update_steps) <= _MARKS else [])},
        "run": shown.number,
        "wide": alone,
        "thinned": len(steps) if len(kept) < len(steps) else 0,
    }


def _tokens(run: RunData, names: Sequence[str], steps: Sequence[int]) -> NDArray[np.float64] | None:
    """Returns (U, S) the tokens of each stretch by source; None where the record does not say them all."""
    found = np.zeros((len(steps), len(names)))
    places = {name: place for place, name in enumerate(names)}
    starts = np.array(steps)
    for segment in run.segments:
        line = int(np.searchsorted(starts, segment.step, side="right")) - 1
        if not segment.sources or any(tokens is None for _, tokens in segment.sources.values()):
            return None
        for name, (_, tokens) in segment.sources.items():
            if name not in places:
                return None
            found[line, places[name]] += tokens or 0
    return found if found.any() else None


def _planned(run: RunData, names: Sequence[str], steps: Sequence[int]) -> NDArray[np.float64] | None:
    """Returns (U, S) the shares that were in force, NaN where they are not known; None for a run without a mixer."""
    lines = run.lines("mix")
    said_first = run.config.get("init_mixture_proportions")
    by_name = mapping(said_first)
    first = numbers([by_name.get(name) for name in names] if by_name else said_first)
    now = np.full(len(names), np.nan)
    if len(first) == len(names) and None not in first and sum(value or 0.0 for value in first) > 0:
        now = np.array(first, dtype=np.float64)
        now /= now.sum()
    if not lines:
        return None
    found, place = np.empty((len(steps), len(names))), 0
    for at, step in enumerate(steps):
        while place < len(lines) and lines[place]["step"] <= step:
            said = mapping(lines[place].get("proportions"))
            if said:
                now = np.array([number(said.get(name)) or 0.0 for name in names])
            place += 1
        found[at] = now
    return found
