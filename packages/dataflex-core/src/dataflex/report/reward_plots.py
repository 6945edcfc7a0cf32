"""Rewards of sampled answers by source: their mean, how far those of one prompt spread, and how often not at all."""

from __future__ import annotations

from collections.abc import Sequence

from dataflex.report.loss_plots import marks
from dataflex.report.record_lines import mapping, number
from dataflex.report.shown_run import Block, Section, Shown, held, lines, series
from dataflex.report.thinned import curve

_PLOTS = (
    ("reward", "Mean reward", "reward"),
    ("spread", "Spread of the rewards of a prompt", "standard deviation"),
    ("alike", "Prompts whose answers all had one reward", "share"),
)


def section(runs: Sequence[Shown]) -> Section | None:
    """Returns the section about rewards; None where no run has sampled answers."""
    found = held(*(_plot(shown, *plot) for shown in runs if shown.panel for plot in _PLOTS))
    return Section("rewards", "Rewards", (), found) if found else None


def _plot(shown: Shown, key: str, title: str, unit: str) -> Block | None:
    found: dict[str, list[tuple[float, float | None]]] = {}
    for line in shown.run.lines("reward"):
        for name, value in mapping(line.get("sources")).items():
            found.setdefault(name, []).append((line["step"], number(mapping(value).get(key))))
    curves = [
        series(name, shown.sources.get(name, place), curve(points))
        for place, (name, points) in enumerate(found.items())
    ]
    return lines(title, unit, curves, marks=[marks(shown)], run=shown.number, wide=True)
