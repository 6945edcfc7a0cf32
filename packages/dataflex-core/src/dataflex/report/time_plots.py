"""What the time went into, and what each update took."""

from __future__ import annotations

from collections.abc import Sequence

from dataflex.report.record_lines import number
from dataflex.report.run_data import RunData
from dataflex.report.shown_run import Block, Section, Shown, held, lines, series
from dataflex.report.thinned import curve, plain

PARTS = ("training", "deciding", "saving", "evaluating")


def deciding_share(run: RunData) -> float | None:
    """Returns the share of the time that went into deciding; None where that is not known."""
    total = sum(run.seconds.values())
    return (
        run.seconds["deciding"] / total if total and "deciding" in run.seconds and "training" in run.seconds else None
    )


def section(runs: Sequence[Shown]) -> Section | None:
    """Returns the section; None where no run has recorded times."""
    timed = [shown for shown in runs if shown.run.seconds]
    blocks = held(_split(timed), _updates(runs))
    if not blocks:
        return None
    lead = []
    explaining = sum(number(line.get("explain_seconds")) or 0.0 for shown in runs for line in shown.run.trace)
    if explaining:
        lead.append(f"Explaining rows took {explaining:,.1f} s of it.")
    return Section("time", "Time", tuple(lead), blocks)


def _split(runs: Sequence[Shown]) -> Block | None:
    if not runs:
        return None
    bars = [
        {
            "name": s.run.name,
            "tone": s.tone,
            "parts": [[part, *plain([s.run.seconds.get(part, 0.0)])] for part in PARTS],
        }
        for s in runs
    ]
    return {"kind": "split", "title": "What the time went into", "bars": bars, "wide": len(runs) > 1}


def _updates(runs: Sequence[Shown]) -> Block | None:
    curves = []
    for shown in runs:
        found: dict[int, float] = {}
        for line in shown.run.trace:
            seconds = number(line.get("seconds"))
            if line.get("update") is not None and seconds is not None:
                found[line["step"]] = found.get(line["step"], 0.0) + seconds
        name = shown.run.name if len(runs) > 1 else "an update"
        curves.append(series(name, shown.tone, curve(sorted(found.items())), "points", shown.dash))
    return lines("What each update took", "seconds", curves, zero=True, format="seconds")
