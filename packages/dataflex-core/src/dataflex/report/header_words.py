"""The first screen in words: what ran, what it chose, what it cost, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dataflex.report.loss_plots import called, evaluated, evaluations
from dataflex.report.record_lines import mapping, number, objects
from dataflex.report.run_data import RunData
from dataflex.report.seen_plots import source_counts
from dataflex.report.shown_run import Shown
from dataflex.report.time_plots import deciding_share
from dataflex.report.wording import count, duration, figure, listing, loss, percent

_LIFT, _EVALUATIONS, _NAMED = 1.25, 3, 6


def sentences(shown: Shown) -> list[str]:
    """Returns what the header says of a run, the most telling first."""
    return [
        *_round(shown),
        *_chose(shown),
        *_passes(shown),
        *_sources(shown),
        *_mixed(shown),
        *_counted(shown),
        *_weighed(shown),
        *_seen(shown),
        *_cost(shown),
        *_came(shown),
    ]


def _round(shown: Shown) -> Iterator[str]:
    if shown.run.round is not None:
        yield f"This is the {shown.run.folder.absolute().name} of round {shown.run.round}."


def _chose(shown: Shown) -> Iterator[str]:
    run, seen = shown.run, shown.seen
    chosen = int((seen.chosen > 0).sum())
    choosing = [component for kind, component in run.parts if kind == "select"]
    filters = [component for kind, component in run.parts if kind == "filter"]
    over = count(run.updates, "update")
    if choosing and seen.updates:
        of = f" of {count(seen.rows, 'row')}" if seen.rows else " rows" if chosen != 1 else " row"
        after = f", from those that {listing(filters)} kept" if filters else ""
        yield f"{listing(choosing)} chose {count(chosen)}{of} over {over}{after}."
    elif choosing:
        yield f"{listing(choosing)} has made no choice: no update has taken place."
    elif run.updates and run.parts:
        weighs = _weighs_losses(run)
        verbs = {
            "mix": "weighed the losses of the sources" if weighs else "set the shares of the sources",
            "order": "arranged the rows",
            "filter": "filtered the rows",
        }
        done = [f"{component} {verbs[kind]}" for kind, component in run.parts if kind in verbs]
        if done:
            yield f"{listing(done)} at {over}."
    if run.train_type == "static":
        yield f"A static run: every row in its turn, without dataflex, for {count(run.step, 'step')}."


def _passes(shown: Shown) -> Iterator[str]:
    """Says how many rows a selector that goes over the data in passes left out of them."""
    for line in reversed(shown.run.lines("select")):
        begun = line.get("passes_begun")
        if begun:
            break
    else:
        return
    if isinstance(begun, dict):  # of a mixture each source has its own
        last = {str(name): objects(own)[-1:] for name, own in begun.items()}
        parts = [f"{_left_out(own[0])} of {name}" for name, own in last.items() if own]
    else:
        parts = [_left_out(own) for own in objects(begun)[-1:]]
    if parts:
        yield f"{line.get('component')} left out of the last pass that it began {listing(parts)}."


def _left_out(begun: Mapping[str, Any]) -> str:
    left, of = number(begun.get("left_out")) or 0.0, number(begun.get("of")) or 0.0
    which = f" (pass {figure(number(begun.get('pass')) or 1)})"
    return f"{count(int(left))} of {count(int(of), 'row')}{which}"


def _sources(shown: Shown) -> Iterator[str]:
    """Says which source a selector was after, where its share of the last choice is above its share of the data."""
    seen = shown.seen
    found = [each for each in source_counts(seen) if each["rows"]]
    last = seen.updates[-1].distinct if seen.updates else 0
    total = sum(each["rows"] for each in found)
    kinds = {kind for kind, _ in shown.run.parts}
    if len(found) < 2 or not last or "select" not in kinds or "mix" in kinds:  # a mixer sets the shares itself
        return
    best = max(found, key=lambda each: each["last"] / last / (each["rows"] / total))
    if best["last"] / last < _LIFT * best["rows"] / total:
        return
    chance = best["rows"] * last / total
    yield (
        f"{count(best['rows'])} of the {count(total, 'row')} are of {best['name']}; {count(best['last'])} of them were "
        f"chosen at the last update (at random: about {figure(round(chance))})."
    )


def _mixed(shown: Shown) -> Iterator[str]:
    weights = _source_weights(shown.run)
    if weights:
        yield f"Their weights in the loss, on average over the steps: {weights}; rows were drawn by shares that stayed."
        return
    if _weighs_losses(shown.run):
        yield "No step has moved the weights of the sources."
        return
    if shown.run.final_weights and shown.run.weighed_steps:
        parts = _parts(shown.run.final_weights)
        yield f"Its final weights, the mean over {count(shown.run.weighed_steps, 'step')}: {parts}."
    said = [mapping(line.get("proportions")) for line in shown.run.lines("mix")]
    said = [shares for shares in said if shares]
    if len(said) < 2:
        return
    first, last = said[0], said[-1]
    moves = {name: (number(share) or 0.0) - (number(first.get(name)) or 0.0) for name, share in last.items()}
    name = max(moves, key=lambda each: abs(moves[each]))
    before, after = number(first.get(name)) or 0.0, number(last.get(name)) or 0.0
    if abs(after - before) < 0.005:
        yield "The shares of the sources stayed as they were at the first update."
    else:
        moved = f"from {percent(before)} at the first update to {percent(after)} at the last"
        yield f"The share of {name} moved most: {moved}."


def _weighs_losses(run: RunData) -> bool:
    """Whether the mixer weighs losses: as the trace says, or, of an older one, where its weights are no shares."""
    lines = run.lines("mix")
    return any(line.get("weighs_losses") is True for line in lines) or bool(_last_weights(lines))


def _source_weights(run: RunData) -> str:
    """Returns what a mixer that weighs losses came to; empty without, and before a step has moved its weights."""
    if _weighs_losses(run) and run.final_weights:
        return _parts(run.final_weights) if run.weighed_steps != 0 else ""
    return _last_weights(run.lines("mix"))


def _last_weights(lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns the average weights of the last update; empty for weights that are the shares of the rows."""
    if not lines:
        return ""
    shares, weights = mapping(lines[-1].get("proportions")), mapping(lines[-1].get("weights"))
    return _parts(mapping(lines[-1].get("average_weights"))) if weights and weights != shares else ""


def _counted(shown: Shown) -> Iterator[str]:
    """Says the shares in the loss, where they are not those of the rows."""
    given = shown.run.config.get("objective_proportions")
    if isinstance(given, list) and len(given) == len(shown.run.sources):
        given = dict(zip([source.name for source in shown.run.sources], given, strict=True))
    parts = _parts(mapping(given))
    if parts:
        yield f"In the loss the sources count by objective_proportions: {parts}."


def _parts(numbers: Mapping[str, Any]) -> str:
    """Returns the parts of a sum by name, the largest first; empty where they are no parts of one."""
    found = {str(name): number(value) or 0.0 for name, value in numbers.items()}
    largest = sorted(found, key=lambda name: -found[name])
    total = sum(found.values())
    if total <= 0:
        return ""
    shown = [f"{name} {percent(found[name] / total)}" for name in largest[:_NAMED]]
    more = len(largest) - len(shown)
    return listing([*shown, count(more, "other")] if more else shown)


def _weighed(shown: Shown) -> Iterator[str]:
    said = shown.run.lines("weight")
    low = [value for line in said if (value := number(line.get("min"))) is not None]
    high = [value for line in said if (value := number(line.get("max"))) is not None]
    if not low or not high:
        return
    name = str(said[-1].get("component", "the weighter"))
    effective = [value for line in said if (value := number(line.get("effective_share"))) is not None]
    worth = (
        f"; weighted, its samples are worth {percent(float(np.mean(effective)))} of as many equal ones"
        if effective
        else ""
    )
    yield f"{name} gave weights from {figure(min(low))} to {figure(max(high))}{worth}."


def _seen(shown: Shown) -> Iterator[str]:
    seen = shown.seen
    if not seen.stretches:
        return
    once, more = int((seen.times == 1).sum()), int((seen.times > 1).sum())
    never = int((seen.times == 0).sum()) if seen.rows is not None else None
    if never is None:
        yield f"{count(once, 'row')} {_was(once)} seen once, {count(more)} more often."
    else:
        yield f"Of the rows, {count(never)} {_was(never)} never seen, {count(once)} once and {count(more)} more often."


def _was(number: int) -> str:
    return "was" if number == 1 else "were"


def _cost(shown: Shown) -> Iterator[str]:
    run = shown.run
    share, total = deciding_share(run), sum(run.seconds.values())
    if share is not None and shown.seen.updates:
        said = percent(share)
        took = f"{duration(run.seconds['deciding'])} of {duration(total)}"
        yield f"{said[0].upper()}{said[1:]} of the time went into deciding ({took})."
    elif total:
        yield f"It took {duration(total)}."


def _came(shown: Shown) -> Iterator[str]:
    run = shown.run
    for name in evaluations(run)[:_EVALUATIONS]:
        points = evaluated(run, name)
        said = f"{loss(points[0][1])} → {loss(points[-1][1])}" if len(points) > 1 else loss(points[-1][1])
        yield f"Eval loss{called(name).removeprefix('evaluation').replace(' of ', ' on ')}: {said}."
    training = [value for line in run.logs if (value := number(line.get("loss"))) is not None]
    if training and not evaluations(run):
        yield f"Training loss: {loss(training[0])} → {loss(training[-1])}; the run evaluated nothing."


def facts(shown: Shown) -> list[dict[str, Any]]:
    """Returns the figures of the first screen: a name, a value, and what it is of."""
    run, seen = shown.run, shown.seen
    of = f"of {run.total_steps:,}" if run.total_steps and run.total_steps != run.step else ""
    found: list[tuple[str, str, str]] = [("Steps", count(run.step), of)]
    if run.updates or run.planned_updates:
        more = run.planned_updates is not None and run.planned_updates > run.updates
        found.append(("Updates", count(run.updates), f"of {count(run.planned_updates or 0)}" if more else ""))
    if seen.stretches:
        once = int((seen.times > 0).sum())
        part = f"{percent(once / seen.rows)} of {count(seen.rows)}" if seen.rows else ""
        found.append(("Rows seen", count(once), part))
    share = deciding_share(run)
    if share is not None:
        found.append(("Deciding", percent(share), f"of {duration(sum(run.seconds.values()))}"))
    names = evaluations(run)
    if names:
        points = evaluated(run, names[0])
        before = f"from {loss(points[0][1])}" if len(points) > 1 else ""
        found.append(("Eval loss", loss(points[-1][1]), before))
    return [{"name": name, "value": value, "of": rest} for name, value, rest in found]


def summary_line(shown: Shown) -> Mapping[str, Any]:
    """Returns a run's line in the table of several runs."""
    run, seen = shown.run, shown.seen
    names = evaluations(run)
    share = deciding_share(run)
    last = evaluated(run, names[0])[-1][1] if names else None
    return {
        "step": run.step,
        "updates": run.updates,
        "seen": int((seen.times > 0).sum()) if seen.stretches else None,
        "deciding": None if share is None else round(share, 4),
        "seconds": round(sum(run.seconds.values()), 1) or None,
        "eval": None if last is None else float(f"{last:.6g}"),
        "metric": names[0] if names else "",
    }
