"""Losses: of training and of evaluations, with the updates marked; and by source where a run measured that."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from dataflex.report.record_lines import mapping, number
from dataflex.report.run_data import RunData
from dataflex.report.shown_run import Block, Section, Shown, held, lines, series
from dataflex.report.thinned import curve, evenly, plain

_EVALUATION = re.compile("eval_(?:(.+)_)?loss")
_MARKS, _SETS = 300, 8


def evaluations(run: RunData) -> list[str]:
    """Returns the names of the losses of a run's evaluations, ``eval_loss`` first."""
    names = {name for line in (*run.logs, run.results) for name in line if _EVALUATION.fullmatch(str(name))}
    found = [name for name in names if any(number(line.get(name)) is not None for line in (*run.logs, run.results))]
    return sorted(found, key=lambda name: (name != "eval_loss", name))


def evaluated(run: RunData, name: str) -> list[tuple[float, float]]:
    """Returns (step, loss) of a run's evaluations, the last one from its results where no line has it."""
    found = [(line["step"], value) for line in run.logs if (value := number(line.get(name))) is not None]
    last = number(run.results.get(name))
    if last is not None and (not found or (found[-1][0] < run.step and found[-1][1] != last)):
        found.append((run.step, last))
    return found


def marks(shown: Shown) -> Block:
    """Returns where a run's updates lie."""
    steps = shown.run.update_steps
    return {"tone": shown.tone, "x": plain([steps[place] for place in evenly(len(steps), _MARKS)])}


def section(runs: Sequence[Shown]) -> Section | None:
    """Returns the section; None where no run has logged a loss."""
    found = held(*(_alone(runs[0]) if len(runs) == 1 else _together(runs)))
    if not found:
        return None
    lead = []
    if any(shown.run.update_steps for shown in runs):
        lead.append("The ticks at the foot of a plot are the updates: there the data changed.")
    return Section("losses", "Losses", tuple(lead), found)


def by_source_section(runs: Sequence[Shown]) -> Section | None:
    """Returns the section about losses by source; None where no run has measured them."""
    found = held(*(_by_source(shown) for shown in runs if shown.panel))
    return Section("source-losses", "Losses by source", (), found) if found else None


def _training(run: RunData) -> list[tuple[float, float | None]]:
    return [(line["step"], number(line.get("loss"))) for line in run.logs]


def _alone(shown: Shown) -> Iterable[Block | None]:
    run = shown.run
    curves = [series("training", shown.tone, curve(_training(run)))]
    for place, name in enumerate(evaluations(run)[:_SETS]):
        curves.append(series(called(name), shown.tone + 1 + place, curve(evaluated(run, name)), "points"))
    yield lines("Loss over the run", "loss", curves, marks=[marks(shown)], wide=True)


def called(name: str) -> str:
    """Returns the name of a metric of an evaluation as the page shows it."""
    found = _EVALUATION.fullmatch(name)
    return name if found is None else f"evaluation of {found[1]}" if found[1] else "evaluation"


def _together(runs: Sequence[Shown]) -> Iterable[Block | None]:
    ticks = [marks(shown) for shown in runs] if len(runs) <= 8 else []
    curves = [series(s.run.name, s.tone, curve(_training(s.run)), dash=s.dash) for s in runs]
    yield lines("Training loss", "loss", curves, marks=ticks)
    names = sorted({name for s in runs for name in evaluations(s.run)}, key=lambda name: (name != "eval_loss", name))
    for name in names[:_SETS]:
        curves = [series(s.run.name, s.tone, curve(evaluated(s.run, name)), "points", s.dash) for s in runs]
        yield lines(called(name).capitalize(), "loss", curves, marks=ticks)


def _by_source(shown: Shown) -> Block | None:
    found: dict[str, list[tuple[float, float | None]]] = {}
    for line in shown.run.lines("loss"):
        for name, value in mapping(line.get("sources")).items():
            one = value if isinstance(value, Mapping) else {"loss": value}
            found.setdefault(name, []).append((line["step"], number(one.get("loss"))))
    most = 300 if len(found) > 10 else 1000
    tones = shown.sources
    curves = [
        series(name, tones.get(name, place), curve(points, most)) for place, (name, points) in enumerate(found.items())
    ]
    curves.sort(key=lambda each: (each["tone"] == "grey", each["tone"] if each["tone"] != "grey" else 0))
    return lines("Training loss by source", "loss", curves, marks=[marks(shown)], run=shown.number, wide=True)
