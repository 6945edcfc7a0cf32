"""What the figures of all runs say: a mapping of plain values, and sentences that need no knowledge of statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dataflex.core.errors import DataflexError
from dataflex.experiments.comparing import Ran
from dataflex.experiments.equal_compute import flops
from dataflex.experiments.equal_tokens import WITHIN
from dataflex.experiments.experiment_arms import Arm
from dataflex.experiments.experiment_file import Experiment
from dataflex.experiments.pairings import Pairing, percent, sentence
from dataflex.experiments.planned_runs import planned
from dataflex.experiments.run_figures import metrics_found
from dataflex.experiments.statistics import Floats, Interval, bootstrap_interval, holm, seeds_needed, t_interval
from dataflex.utils.logging import logger

_LENGTH = {"max_steps", "num_train_epochs"}


def comparison(experiment: Experiment, ran: Ran) -> dict[str, Any]:
    """Returns what ``comparison.json`` holds: docs/compare.md has the keys. Numbers that are not finite are None."""
    named = {f"{name}, seed {seed}": found for (name, seed), found in ran.figures.items()}
    metrics = metrics_found(experiment.metrics, named)
    pairings = [p for metric, lower in metrics.items() for p in _pairings(experiment, ran, metric, lower)]
    own = {arm.name for arm in ran.arms if not arm.control}
    tested = [pairing for pairing in pairings if pairing.arm in own]
    levels = dict(zip(((p.arm, p.metric) for p in tested), holm([p.p for p in tested], experiment.level), strict=True))
    found: dict[str, Any] = {}
    for metric, lower in metrics.items():
        arms = {arm.name: _summary(arm, metric, experiment, ran) for arm in ran.arms}
        for pairing in (p for p in pairings if p.metric == metric):
            arms[pairing.arm] |= _compared(pairing, levels.get((pairing.arm, metric)), experiment)
        found[metric] = {"lower_is_better": lower, "arms": arms}
    says = [arms["says"] for metric in found.values() for arms in metric["arms"].values() if arms["says"]]
    return {
        "level": experiment.level,
        "equal": experiment.equal,
        "base": experiment.base.name,
        "seeds": list(experiment.seeds),
        "arms": [_arm(arm, experiment, ran) for arm in ran.arms],
        "metrics": found,
        "says": [*_failures(ran), *says, *_notes(experiment, ran, len(metrics))],
    }


def _pairings(experiment: Experiment, ran: Ran, metric: str, lower: bool) -> Iterator[Pairing]:
    values = {arm.name: _values(arm.name, metric, experiment, ran) for arm in ran.arms}
    for arm in ran.arms:
        if arm.against is not None:
            pairs = zip(experiment.seeds, values[arm.name], values[arm.against], strict=True)
            ended = [(s, mine) for s, mine, other in pairs if (arm.name, s) in ran.figures and math.isfinite(other)]
            broken = tuple(seed for seed, mine in ended if not math.isfinite(mine))
            yield Pairing(arm.name, arm.against, metric, lower, values[arm.name], values[arm.against], broken)


def _values(arm: str, metric: str, experiment: Experiment, ran: Ran) -> Floats:
    """Returns (S,) values by seed, NaN where there is none."""
    runs = [ran.figures.get((arm, seed)) for seed in experiment.seeds]
    return np.array([math.nan if run is None else run.numbers.get(metric, math.nan) for run in runs], dtype=np.float64)


def _summary(arm: Arm, metric: str, experiment: Experiment, ran: Ran) -> dict[str, Any]:
    values = _values(arm.name, metric, experiment, ran)
    there = values[np.isfinite(values)]
    nothing = (
        "against",
        "difference",
        "low",
        "high",
        "bootstrap_low",
        "bootstrap_high",
        "p",
        "wins",
        "verdict",
        "needed",
    )
    return {
        "values": [_plain(value) for value in values],
        "mean": _plain(there.mean()) if there.size else None,
        "std": _plain(there.std(ddof=1)) if there.size > 1 else None,
        "seeds": int(there.size),
        **dict.fromkeys(nothing),
        "says": "",
    }


def _compared(pairing: Pairing, tested: tuple[float, float] | None, experiment: Experiment) -> dict[str, Any]:
    """Returns what is said of an arm beside its reference; of a control, which is not tested, the figures alone."""
    differences = pairing.differences
    adjusted, level = tested or (pairing.p, experiment.level)
    n, difference = len(differences), float(differences.mean()) if len(differences) else math.nan
    interval = t_interval(differences, level) if n else Interval(math.nan, math.nan)
    bootstrap = bootstrap_interval(differences, level)
    std = float(differences.std(ddof=1)) if n > 1 else math.nan
    needed = None if math.isnan(interval.low) else seeds_needed(difference, std, level)
    verdict = None if tested is None else pairing.verdict(adjusted, experiment.level)
    says = "" if verdict is None else sentence(pairing, verdict, level, interval, std, needed)
    return {
        "against": pairing.against,
        "difference": _plain(difference),
        "low": _plain(interval.low),
        "high": _plain(interval.high),
        "bootstrap_low": _plain(bootstrap.low),
        "bootstrap_high": _plain(bootstrap.high),
        "confidence": 1 - level,
        "p": _plain(adjusted) if n > 1 else None,
        "wins": pairing.wins,
        "seeds": n,
        "verdict": verdict,
        "needed": needed,
        "says": says,
    }


def _arm(arm: Arm, experiment: Experiment, ran: Ran) -> dict[str, Any]:
    runs = [ran.figures.get((arm.name, seed)) for seed in experiment.seeds]
    compute = _compute(arm, experiment.jobs)
    return {
        "name": arm.name,
        "control": arm.control,
        "against": arm.against,
        "folders": [str(planned(arm, seed, experiment).folder) for seed in experiment.seeds],
        "failed": [seed for name, seed in ran.failed if name == arm.name],
        "steps": [run and run.steps for run in runs],
        "tokens": [run and run.tokens for run in runs],
        "seconds": [run and run.seconds for run in runs],
        "compute": [run and compute for run in runs],
        "length": arm.length,
    }


def _compute(arm: Arm, ranks: int | None) -> float | None:
    """Returns what a run of an arm takes in FLOPs; None where that cannot be told, which is no reason for no table."""
    try:
        return flops(arm.spec, ranks)
    except DataflexError as error:
        logger.warning("%s: what it takes in compute is not known: %s", arm.name, error)
        return None


def _failures(ran: Ran) -> list[str]:
    return [f"{arm}, seed {seed}: the run failed and is left out." for arm, seed in ran.failed]


def _notes(experiment: Experiment, ran: Ran, metrics: int) -> Iterator[str]:
    """Yields what else a reader must know."""
    tested = sum(not arm.control and arm.against is not None for arm in ran.arms) * metrics
    if tested > 1:
        yield (
            f"{tested} comparisons are tested together (Holm): the chance that any of them is called better or worse "
            f"by luck is at most {percent(experiment.level)}."
        )
    yield from (f"{arm.name}: {arm.length}, so that {experiment.equal} are equal." for arm in ran.arms if arm.length)
    if experiment.equal == "steps":
        yield from _unequal_steps(experiment, ran)
    if experiment.equal == "tokens":
        yield from _unequal_tokens(experiment, ran)
    specs = {arm.name: arm.spec.llamafactory for arm in ran.arms}
    for arm in ran.arms:
        if arm.against is not None and not arm.control:
            mine, theirs = specs[arm.name], specs[arm.against]
            keys = [key for key in sorted({*mine, *theirs} - _LENGTH) if mine.get(key) != theirs.get(key)]
            if keys:
                also = f"{arm.name} differs from {arm.against} in {', '.join(keys)} too"
                yield f"{also}: it is not the strategy alone that is compared."


def _unequal_steps(experiment: Experiment, ran: Ran) -> Iterator[str]:
    """Yields a sentence for each arm that did other steps than the first, where nobody could count them before."""
    done = {
        arm.name: {ran.figures[arm.name, s].steps for s in experiment.seeds if (arm.name, s) in ran.figures}
        for arm in ran.arms
    }
    first = ran.arms[0].name
    for name, steps in done.items():
        if steps and done[first] and steps != done[first]:
            counts = [", ".join(str(each) for each in sorted(filter(None, found))) for found in (steps, done[first])]
            did = f"{name} did {counts[0]} steps and {first} {counts[1]}"
            yield f"{did}: it is not the strategy alone that is compared."


def _unequal_tokens(experiment: Experiment, ran: Ran) -> Iterator[str]:
    """Yields a sentence for each arm whose tokens over all seeds are not those of the first arm after all."""
    means = {}
    for arm in ran.arms:
        runs = [ran.figures[arm.name, seed].tokens for seed in experiment.seeds if (arm.name, seed) in ran.figures]
        counted: Sequence[int] = [tokens for tokens in runs if tokens]
        means[arm.name] = sum(counted) / len(counted) if counted else math.nan
    first = ran.arms[0].name
    for name, mean in means.items():
        share = mean / means[first] - 1
        if abs(share) > WITHIN:
            off = f"{name} trained on {100 * abs(share):.1f} % {'more' if share > 0 else 'fewer'} tokens than {first}"
            yield f"{off} over all seeds: steps are whole, and were set by the first seed."


def _plain(value: float | Mapping[str, Any]) -> Any:
    number = float(value)  # type: ignore[arg-type]
    return number if math.isfinite(number) else None
