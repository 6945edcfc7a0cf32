"""Which rows were seen: what successive selections share, how often each row was seen, and the same by source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dataflex.report.seen_rows import SeenRows
from dataflex.report.shown_run import Block, Section, Shown, held, lines, series
from dataflex.report.thinned import curve, plain

TIMES = ((0, 0), (1, 1), (2, 2), (3, 3), (4, 5), (6, 8), (9, 16), (17, 32), (33, 2**31))
"""Bars of the plot of how often rows were seen, as first and last number of times."""


def section(runs: Sequence[Shown]) -> Section | None:
    """Returns the section; None where no run has recorded rows."""
    known = [shown for shown in runs if shown.seen.stretches]
    if not known:
        return None
    blocks = held(_overlap(known), _coverage(known), _times(known), *(_by_source(s) for s in known if s.panel))
    lead = []
    if any(shown.seen.rows is None for shown in known):
        lead.append("How many rows the dataset has is not known, so rows that were never seen are not counted.")
    return Section("seen", "Which rows were seen", tuple(lead), blocks)


def _overlap(runs: Sequence[Shown]) -> Block | None:
    curves = []
    for shown in runs:
        said = [stretch for stretch in shown.seen.updates if stretch.shared is not None and stretch.distinct]
        shared = curve([(each.step, (each.shared or 0) / each.distinct) for each in said])
        name = shown.run.name if len(runs) > 1 else "shared with the update before"
        curves.append(series(name, shown.tone, shared, "points", shown.dash))
        chance = [(each.step, each.by_chance / each.distinct) for each in said if each.by_chance is not None]
        if shown.panel:
            by_chance = "by chance" if len(runs) == 1 else f"{shown.run.name}, by chance"
            curves.append(series(by_chance, "grey" if len(runs) == 1 else shown.tone, curve(chance), "dashed"))
    note = "Dashed: what two random choices of these sizes would share."
    return lines("Rows shared with the update before", "share", curves, format="percent", zero=True, says=note)


def _coverage(runs: Sequence[Shown]) -> Block | None:
    whole = all(shown.seen.rows for shown in runs)
    curves = []
    for shown in runs:
        new = np.cumsum([stretch.new for stretch in shown.seen.stretches])
        total = (shown.seen.rows or 1) if whole else 1
        points = [(each.step, n / total) for each, n in zip(shown.seen.stretches, new.tolist(), strict=True)]
        points += [(max(shown.run.step, points[-1][0]), points[-1][1])]
        name = shown.run.name if len(runs) > 1 else "seen at least once"
        curves.append(series(name, shown.tone, curve(points), "stepped", shown.dash))
    title, form = ("Share of the dataset seen so far", "percent") if whole else ("Rows seen so far", "number")
    return lines(title, "share" if whole else "rows", curves, format=form, zero=True)


def times_seen(seen: SeenRows) -> list[int]:
    """Returns how many rows were seen as often as each bar of :data:`TIMES` says."""
    counts = np.bincount(seen.times) if len(seen.times) else np.zeros(1, dtype=np.int64)
    found = [int(counts[first : last + 1].sum()) for first, last in TIMES]
    return found if seen.rows is not None else [0, *found[1:]]


def _times(runs: Sequence[Shown]) -> Block:
    known = [times_seen(shown.seen) for shown in runs]
    last = max((place for found in known for place, n in enumerate(found) if n), default=0)
    first = 0 if any(shown.seen.rows is not None for shown in runs) else 1
    kept = range(first, max(last, first) + 1)
    names = [str(a) if a == b else f"{a} or more" if b == 2**31 else f"{a} to {b}" for a, b in TIMES]
    names[0] = "never"
    bars = [
        {"name": shown.run.name, "tone": shown.tone, "values": [found[place] for place in kept]}
        for shown, found in zip(runs, known, strict=True)
    ]
    return {
        "kind": "bars",
        "title": "How often rows were seen",
        "labels": [names[place] for place in kept],
        "x": "times seen",
        "y": "rows",
        "series": bars,
    }


def source_counts(seen: SeenRows) -> list[dict[str, Any]]:
    """Returns per source: its rows, the different rows that updates chose, chose last, saw never; sightings in all.

    Empty where no sources are known. ``rows`` and ``never`` are None for streams.
    """
    if seen.source_of is None or not seen.sources:
        return []
    count, updates = len(seen.sources), seen.updates
    chosen = np.bincount(seen.source_of[seen.chosen > 0], minlength=count)
    once = np.bincount(seen.source_of[seen.times > 0], minlength=count)
    sightings = np.bincount(seen.source_of, weights=seen.times, minlength=count)
    last = updates[-1].different if updates else np.zeros(count, dtype=np.int64)
    sizes: list[int | None] = [source.rows for source in seen.sources]
    if seen.places.whole and None in sizes:
        sizes = np.bincount(seen.source_of, minlength=count).tolist()
    return [
        {
            "name": source.name,
            "rows": size,
            "chosen": int(chosen[place]),
            "last": int(last[place]),
            "seen": int(once[place]),
            "never": None if size is None else size - int(once[place]),
            "sightings": int(sightings[place]),
        }
        for place, (source, size) in enumerate(zip(seen.sources, sizes, strict=True))
    ]


def _by_source(shown: Shown) -> Block | None:
    found = source_counts(shown.seen)
    if len(found) < 2:
        return None
    total = sum(each["sightings"] for each in found) or 1
    everything = sum(each["rows"] or 0 for each in found)
    rows = []
    for each in found:
        share = each["sightings"] / total
        of = each["rows"] / everything if each["rows"] is not None and everything else None
        lift = share / of if of else None
        mean = each["sightings"] / each["rows"] if each["rows"] else None
        cells = [each["rows"], of, share, lift, each["chosen"], each["last"], each["never"], mean]
        rows.append([each["name"], *plain(cells, 4)])
    columns = [
        ["source", "text"], ["rows", "count"], ["share of the data", "percent"], ["share of what was seen", "percent"],
        ["against its share", "times"], ["chosen by updates", "count"], ["chosen at the last", "count"],
        ["never seen", "count"], ["times seen, mean", "number"],
    ]  # fmt: skip
    rows.sort(key=lambda row: -(row[3] or 0))
    return {
        "kind": "table",
        "title": "By source",
        "columns": columns,
        "rows": rows,
        "run": shown.number,
        "wide": True,
        "bar": 3,
    }
