"""Weights of samples: how they are spread, how many samples they are worth, and what each source weighs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dataflex.report.record_lines import mapping, number
from dataflex.report.score_plots import histogram_block
from dataflex.report.shown_run import Block, Section, Shown, held, lines, series
from dataflex.report.thinned import curve


def weight_pairs(said: Any) -> list[tuple[int, float]]:
    """Returns (row, weight) of a list of the record."""
    pairs = said if isinstance(said, list) else []
    found = []
    for pair in pairs:
        if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], int) and not isinstance(pair[0], bool):
            weight = number(pair[1])
            if weight is not None and pair[0] >= 0:
                found.append((pair[0], weight))
    return found


def row_weights(lines_: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Returns row -> the weight that the last line which names the row gives it."""
    found: dict[int, float] = {}
    for line in lines_:
        for key in ("most", "least"):
            found |= dict(weight_pairs(line.get(key)))
    return found


def section(runs: Sequence[Shown]) -> Section | None:
    """Returns the section; None where no run weighs."""
    weighing = [shown for shown in runs if shown.run.lines("weight")]
    blocks = [_spread(shown) for shown in weighing if shown.panel]
    blocks.append(_effective(weighing))
    for shown in weighing:
        if shown.panel:
            said = shown.run.lines("weight")
            blocks.append(
                histogram_block(shown, "How many samples have which weight", said, {"samples": ("histogram",)})
            )
            blocks.append(_by_source(shown))
    found = held(*blocks)
    if not found:
        return None
    lead = (
        "The effective number of samples says how many equal ones the weighted ones are worth: 100 % where all weights "
        "are alike.",
    )
    return Section("weights", "Weights of the samples", lead, found)


def _values(shown: Shown, key: str) -> list[tuple[float, float | None]]:
    return [(line["step"], number(line.get(key))) for line in shown.run.lines("weight")]


def _spread(shown: Shown) -> Block | None:
    curves = [
        series("mean", shown.tone, curve(_values(shown, "mean"))),
        series("smallest", "grey", curve(_values(shown, "min")), "dashed"),
        series("largest", "grey", curve(_values(shown, "max")), "dashed"),
    ]
    return lines("Weights over the run", "weight", curves, run=shown.number)


def _effective(runs: Sequence[Shown]) -> Block | None:
    curves = [
        series(
            s.run.name if len(runs) > 1 else "effective share",
            s.tone,
            curve(_values(s, "effective_share")),
            dash=s.dash,
        )
        for s in runs
    ]
    return lines("Effective sample size", "of the samples", curves, format="percent")


def _by_source(shown: Shown) -> Block | None:
    found: dict[str, list[tuple[float, float | None]]] = {}
    for line in shown.run.lines("weight"):
        for name, weight in mapping(line.get("sources")).items():
            found.setdefault(name, []).append((line["step"], number(weight)))
    most = 300 if len(found) > 10 else 1000
    tones = shown.sources
    curves = [
        series(name, tones.get(name, place), curve(points, most)) for place, (name, points) in enumerate(found.items())
    ]
    curves.sort(key=lambda each: (each["tone"] == "grey", each["tone"] if each["tone"] != "grey" else 0))
    return lines("Mean weight by source", "weight", curves, run=shown.number)
