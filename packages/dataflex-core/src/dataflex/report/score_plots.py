"""Scores: their spread at each update, of the chosen rows and of all candidates; and along an arranged stretch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dataflex.report.record_lines import mapping, number, numbers
from dataflex.report.shown_run import Block, Section, Shown, held, label, lines, series
from dataflex.report.thinned import curve, evenly, plain

SPREAD = ("min", "q1", "median", "q3", "max")
_HISTOGRAMS, _SPREADS = 100, 500


def section(runs: Sequence[Shown]) -> Section | None:
    """Returns the section; None where no run has scores."""
    blocks: list[Block | None] = []
    for shown in runs:
        if shown.panel:
            blocks += [*_spreads(shown), _histograms(shown)]
    found = held(*blocks)
    if not found:
        return None
    lead = (
        "What the selector thought of the rows, at each update: the line is the median, the band the middle half, the "
        "pale band all rows that it chose.",
    )
    return Section("scores", "Scores at each update", lead, found)


def order_section(runs: Sequence[Shown]) -> Section | None:
    """Returns the section about arranged rows; None where no run has an order that looks at scores."""
    found = held(*(_along(shown) for shown in runs if shown.panel))
    lead = ("Mean score of 20 stretches of the arranged rows, from the first to the last that is trained on.",)
    return Section("order", "Order of the rows", lead, found) if found else None


def _spreads(shown: Shown) -> list[Block | None]:
    found: list[Block | None] = []
    for kind in ("select", "filter"):
        by_name: dict[str, list[Mapping[str, Any]]] = {}
        for line in shown.run.lines(kind):
            if mapping(line.get("scores")):
                by_name.setdefault(str(line.get("component", "")), []).append(line)
        for name, said in by_name.items():
            found.append(_spread(shown, kind, name, said))
    return found or [_from_files(shown)]


def _spread(shown: Shown, kind: str, name: str, said: Sequence[Mapping[str, Any]]) -> Block:
    kept = [said[place] for place in evenly(len(said), _SPREADS)]
    title = f"Scores by the {label(kind)} {name}"
    block = _spread_block(shown, title, [line["step"] for line in kept], _columns(kept, "scores"))
    if not any(value is not None for value in block["chosen"]["q1"]):  # an older record: quartiles are in the files
        quartiles = {stretch.step: stretch.quartiles for stretch in shown.seen.updates if stretch.quartiles}
        rows = [quartiles.get(line["step"]) for line in kept]
        if kind == "select" and all(row is not None for row in rows):
            columns = zip(*(row for row in rows if row is not None), strict=True)
            block["chosen"] = dict(zip(SPREAD, map(plain, columns), strict=True))
    if any(mapping(line.get("candidates")) for line in kept):
        block["candidates"] = _columns(kept, "candidates")
    return block


def _columns(said: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[Any]]:
    return {name: plain([number(mapping(line.get(key)).get(name)) for line in said]) for name in SPREAD}


def _spread_block(shown: Shown, title: str, steps: Sequence[int], chosen: dict[str, list[Any]]) -> Block:
    return {
        "kind": "spread",
        "title": title,
        "x": plain(steps),
        "chosen": chosen,
        "tone": shown.tone,
        "run": shown.number,
    }


def _from_files(shown: Shown) -> Block | None:
    """Returns the spread of the scores in the files of the selections; None where they hold none."""
    scored = [stretch for stretch in shown.seen.stretches if stretch.quartiles]
    if not scored:
        return None
    kept = [scored[place] for place in evenly(len(scored), _SPREADS)]
    columns = zip(*(stretch.quartiles or [] for stretch in kept), strict=True)
    chosen = dict(zip(SPREAD, map(plain, columns), strict=True))
    return _spread_block(shown, "Scores of the chosen rows", [stretch.step for stretch in kept], chosen)


def bins(said: Any) -> tuple[list[Any], list[Any]] | None:
    """Returns edges and counts of a histogram of the record; None where it is none."""
    found = mapping(said)
    edges, counts = numbers(found.get("edges")), numbers(found.get("counts"))
    if len(edges) != len(counts) + 1 or not counts or None in edges or None in counts:
        return None
    return plain(edges), plain(counts)


def _histograms(shown: Shown) -> Block | None:
    said = [line for line in shown.run.lines("select") if bins(mapping(line.get("scores")).get("histogram"))]
    return histogram_block(
        shown,
        "How many rows have which score",
        said,
        {"chosen rows": ("scores", "histogram"), "all candidates": ("candidates", "histogram")},
    )


def histogram_block(
    shown: Shown, title: str, said: Sequence[Mapping[str, Any]], paths: Mapping[str, tuple[str, ...]]
) -> Block | None:
    """Returns histograms, one per line of the trace, that a slider goes through; None without any.

    Args:
        shown: The run.
        title: The heading.
        said: The lines.
        paths: Name -> the keys under which a line has the histogram; the first is drawn in the run's colour.
    """
    kept = [said[place] for place in evenly(len(said), _HISTOGRAMS)]
    of: list[Block] = []
    for name, path in paths.items():
        found = []
        for line in kept:
            value: Any = line
            for key in path:
                value = mapping(value).get(key)
            found.append(bins(value))
        if any(found):
            edges, counts = [each[0] if each else [] for each in found], [each[1] if each else [] for each in found]
            of.append({"name": name, "tone": "grey" if of else shown.tone, "edges": edges, "counts": counts})
    if not of:
        return None
    return {
        "kind": "histograms",
        "title": title,
        "steps": plain([line["step"] for line in kept]),
        "of": of,
        "run": shown.number,
        "thinned": len(said) if len(kept) < len(said) else 0,
    }


def _along(shown: Shown) -> Block | None:
    said = [line for line in shown.run.lines("order") if mapping(line.get("along"))]
    if not said:
        return None
    kept = [said[place] for place in evenly(len(said), 5)]
    curves = []
    for place, line in enumerate(kept):
        along = mapping(line["along"])
        places, scores = numbers(along.get("places")), numbers(along.get("scores"))
        points = [(100 * x, y) for x, y in zip(places, scores, strict=False) if x is not None]
        curves.append(series(f"step {line['step']:,}", place, curve(points)))
    name = str(said[-1].get("component", ""))
    found = lines(f"Scores along the rows that {name} arranged", "mean score", curves, run=shown.number)
    return None if found is None else found | {"x": "place"}
