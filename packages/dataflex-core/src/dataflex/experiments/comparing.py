"""Running a comparison: one run after the other, going on where an earlier start was stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dataflex.core.errors import ConfigError
from dataflex.experiments.arm_steps import LENGTHS, steps_in_words
from dataflex.experiments.equal_arms import longer
from dataflex.experiments.equal_tokens import Measurements
from dataflex.experiments.experiment_arms import Arm
from dataflex.experiments.experiment_file import Experiment
from dataflex.experiments.going_on import SIGNALS, going_on
from dataflex.experiments.planned_runs import (
    ALL_RESULTS,
    FINISHED,
    NEW,
    TRAINER_STATE,
    PlannedRun,
    planned,
    read_json,
)
from dataflex.experiments.run_figures import RunFigures, figures, metrics_found
from dataflex.utils.logging import logger
from dataflex.utils.progress import duration

Train = Callable[[PlannedRun, Sequence[str], Mapping[str, str]], int]
"""Trains a run as its plan says, with overrides and more environment; returns the exit code."""


class StoppedComparisonError(Exception):
    """A signal has stopped the comparison.

    Attributes:
        code: The exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Ran:
    """What came of the runs.

    Attributes:
        arms: The arms, with the steps that they had in the end.
        figures: (arm, seed) -> figures of the finished runs.
        failed: (arm, seed) -> exit code of those that failed.
    """

    arms: list[Arm]
    figures: dict[tuple[str, int], RunFigures] = field(default_factory=dict)
    failed: dict[tuple[str, int], int] = field(default_factory=dict)


def compare(experiment: Experiment, arms: Sequence[Arm], train: Train) -> Ran:
    """Runs what is not finished, all arms of a seed before the next seed.

    A run that fails does not keep the others from running.

    Raises:
        ConfigError: A folder holds a run of another configuration; or a metric is in no run.
        StoppedComparisonError: A signal came.
    """
    states = [_state(run, experiment) for run in runs_of(experiment, arms)]
    work = _Work(experiment, train, len(states), states.count(FINISHED))
    ran = Ran(list(arms))
    if experiment.equal == "tokens":
        ran.arms = _with_equal_tokens(experiment, ran, work)
    for run in runs_of(experiment, ran.arms):
        if (run.arm.name, run.seed) not in ran.failed:
            _run(run, ran, work)
    return ran


def runs_of(experiment: Experiment, arms: Sequence[Arm]) -> Iterator[PlannedRun]:
    """Yields the runs in their order: seed after seed, in each the references first."""
    return (planned(arm, seed, experiment) for seed in experiment.seeds for arm in arms)


def _with_equal_tokens(experiment: Experiment, ran: Ran, work: _Work) -> list[Arm]:
    """Runs the first seed of each arm until its tokens are those of the first; returns the arms with their steps."""
    known, seed = Measurements(experiment.output_dir), experiment.seeds[0]
    wanted: int | None = None
    found = []
    for arm in ran.arms:
        run, measured = planned(arm, seed, experiment), known.of(arm.name)
        before = arm.steps or next(iter(measured.tokens), None)
        steps = measured.steps(wanted)
        if steps is not None and before is not None and steps != before:
            run = planned(longer(arm, before, steps, experiment), seed, experiment)
        while True:
            _make_room(run, known.of(arm.name).tokens)
            got = _run(run, ran, work)
            if got is None or got.steps is None:
                break
            if got.tokens is None:
                raise ConfigError(f"{run.folder}: nobody counted its tokens -> use equal: steps")
            if wanted is None:
                wanted = got.tokens
            if measured.settled is not None:
                break
            before = before or got.steps
            steps = measured.note(got.steps, got.tokens, wanted)
            known.save()
            if steps == got.steps:
                break
            logger.info(
                "%s: %s tokens in %d steps, and %s are wanted: %d steps", arm.name, f"{got.tokens:,}", got.steps,
                f"{wanted:,}", steps,
            )  # fmt: skip
            run = planned(longer(arm, before, steps, experiment), seed, experiment)
        found.append(run.arm)
    return found


def _make_room(run: PlannedRun, measured: Mapping[int, int]) -> None:
    """Moves a run aside that measured an arm with other steps."""
    if not run.differences():
        return
    done = read_json(run.folder / TRAINER_STATE).get("global_step")
    if isinstance(done, int) and done in measured and done != run.arm.steps:
        run.move_aside(f"measured-{done}-steps")


def _state(run: PlannedRun, experiment: Experiment) -> str:
    """Returns how far a run is; before any starts, so that nothing is found out after hours."""
    if experiment.equal != "tokens":
        return run.state()
    run.require_same(but=LENGTHS)  # how long it is follows from what was measured
    return FINISHED if (run.folder / ALL_RESULTS).exists() else NEW


@dataclass
class _Work:
    """How far the comparison is."""

    experiment: Experiment
    train: Train
    total: int
    finished: int
    seconds: list[float] = field(default_factory=list)

    def begin(self, run: PlannedRun, how: str) -> None:
        left = f"; about {duration(self.left)} left" if self.seconds else ""
        number = min(self.finished + 1, self.total)
        logger.info(
            "run %d of %d: %s (%s)%s%s; it writes to %s", number, self.total, run.name, steps_in_words(run.arm.spec),
            how, left, run.log,
        )  # fmt: skip

    @property
    def left(self) -> float:
        """Seconds that the other runs take, if they are like those before."""
        return sum(self.seconds) / len(self.seconds) * max(self.total - self.finished, 1)


def _run(run: PlannedRun, ran: Ran, work: _Work) -> RunFigures | None:
    """Brings a run to its end and returns its figures; None where it failed."""
    key = (run.arm.name, run.seed)
    if key in ran.figures and run.state() == FINISHED:
        return ran.figures[key]
    state = run.state()
    if state != FINISHED:
        overrides, how = going_on(run, state)
        work.begin(run, how)
        began = time.monotonic()
        code = work.train(run, overrides, run.write())
        work.seconds.append(time.monotonic() - began)
        work.finished += 1
        if code in SIGNALS:
            raise StoppedComparisonError(code)
        if code:
            logger.error(
                "%s failed with exit code %d; the others go on. Why stands at the end of %s", run.name, code, run.log
            )
            ran.failed[key] = code
            return None
        if run.state() != FINISHED:
            logger.error("%s ended without its results; the others go on: %s", run.name, run.log)
            ran.failed[key] = 0
            return None
    ran.figures[key] = found = figures(run)
    metrics_found(work.experiment.metrics, {f"{name}, seed {seed}": each for (name, seed), each in ran.figures.items()})
    return found
