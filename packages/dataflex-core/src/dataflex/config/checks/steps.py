"""The schedule: whether the updates that are asked for can happen, and whether the run has a step at all.

``validate`` asks with the keys of a file, the trainers with the arguments that they were given.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dataflex.config.arguments import COMPOSED
from dataflex.config.axis_keys import EVERY, FROM
from dataflex.config.checks.parsed_config import Draft
from dataflex.config.spec import Part, decides
from dataflex.core.errors import Problem
from dataflex.core.schedule import Steps

STEP_KEYS = frozenset({"warmup_step", "update_step", "update_times", "train_step"})


def with_max_steps(draft: Draft) -> tuple[Draft, list[Problem]]:
    """Returns the draft with LLaMA-Factory's ``max_steps`` taken as ``train_step``, and a problem where both differ."""
    max_steps = draft.count("max_steps", -1)
    if not draft.dynamic or max_steps <= 0:
        return draft, []
    problems = two_totals(draft.arguments.train_step, max_steps)
    if problems:
        return draft, problems
    return replace(draft, arguments=replace(draft.arguments, train_step=max_steps)), []


def two_totals(train_step: int, max_steps: int) -> list[Problem]:
    """Returns a problem where the two names for the number of steps say different things; 0 or less says nothing."""
    if max_steps <= 0 or train_step in (0, max_steps):
        return []
    return [Problem("train_step", f"is {train_step} and max_steps is {max_steps}", "remove one of the two")]


def schedule_problems(draft: Draft) -> list[Problem]:
    """Returns what is wrong with the numbers of steps taken together."""
    if not draft.dynamic:
        return []
    steps = draft.steps
    problems = [*step_problems(steps, total_key(draft.written, draft.theirs)), *_no_updates(draft)]
    if problems or steps.total is None:
        return problems
    return never_there([known.where for known in draft.known], draft.axes, steps)


def _no_updates(draft: Draft) -> list[Problem]:
    """Returns a problem where a composed run has no updates and axes that take part at updates alone."""
    a = draft.arguments
    waiting = [known.where for known in draft.known if decides([known.part])]
    if a.train_type != COMPOSED or a.update_times != 0 or not waiting:
        return []
    do = "does" if len(waiting) == 1 else "do"
    what = f"is 0, and without an update {' and '.join(waiting)} {do} nothing"
    way_out = f"set update_times: -1 and update_step, or leave out {' and '.join(waiting)}"
    return [Problem("update_times", what, way_out)]


def never_there(places: Sequence[str], axes: Sequence[Part], steps: Steps, steps_per_pass: int = 1) -> list[Problem]:
    """Returns a problem for each axis that has its turn behind the end of the run.

    A weighter that begins after a warm-up which is the whole run is let be, as with ``dynamic_weight``.

    Args:
        places: The key of each axis.
        axes: The axes.
        steps: The run.
        steps_per_pass: Steps in which every row would be seen once, where the run is as long as passes are.
    """
    schedule = steps.plan(steps_per_pass)
    problems = []
    for where, part in zip(places, axes, strict=True):
        if part.start >= schedule.total and part.start != steps.warmup_step:
            what = f"is {part.start}, and the run ends after {schedule.total} steps"
            problems.append(Problem(f"{where}.{FROM}", what, "give an earlier step, or make the run longer"))
        elif decides([part]) and schedule.updates and schedule.first_update(part.every, part.start) is None:
            last = schedule.updates - 1
            what = (
                f"is {part.start}: with {EVERY}: {part.every}, none of the updates from there on, the last of which is "
                f"number {last}, is a multiple of {part.every}"
            )
            problems.append(Problem(f"{where}.{FROM}", what, "give an earlier step, or a smaller every"))
    return problems


def total_key(written: Collection[str], theirs: Mapping[str, Any]) -> str:
    """Returns the name under which the total of the steps can be changed: where both are written, both must be.

    Args:
        written: The keys of dataflex that were given a value.
        theirs: LLaMA-Factory's keys.
    """
    steps = theirs.get("max_steps")
    if not isinstance(steps, int | float) or steps <= 0:
        return "train_step"
    return "train_step and max_steps" if "train_step" in written else "max_steps"


def step_problems(steps: Steps, total: str = "train_step") -> list[Problem]:
    """Returns what is wrong with the steps and updates of a dynamic run.

    Every way out is tried before it is given: with it, the problem is gone and no other has come.

    Args:
        steps: The run.
        total: The key that ``train_step`` was given under.
    """
    faults = _faults(steps, total)
    places = {fault.where for fault in faults}
    problems = []
    for fault in faults:
        ways = [text for text, keys in fault.ways if _places(replace(steps, **keys), total) <= places - {fault.where}]
        problems.append(Problem(fault.where, fault.what, ", or ".join(ways)))
    return problems


@dataclass(frozen=True)
class _Fault:
    """What is wrong, and what may mend it: in words, and as fields of :class:`~dataflex.core.schedule.Steps`."""

    where: str
    what: str
    ways: Sequence[tuple[str, Mapping[str, Any]]]


def _places(steps: Steps, total: str) -> set[str]:
    return {fault.where for fault in _faults(steps, total)}


def _faults(steps: Steps, total: str) -> list[_Fault]:
    asked = steps.update_times > 0 or (steps.decides and steps.update_times == -1)
    none = ("set update_times: 0", {"update_times": 0})
    found = []
    if steps.update_step < 1 and asked:
        times = "updates until the end" if steps.update_times == -1 else f"{steps.update_times} updates"
        what = f"is {steps.update_step}, but update_times: {steps.update_times} asks for {times}"
        found.append(_Fault("update_step", what, [("give the steps between two updates", {"update_step": 1}), none]))
    if steps.decides and asked and 0 < steps.train_step <= steps.warmup_step:
        what = f"is {steps.train_step}, so the run ends before its first update (warmup_step: {steps.warmup_step})"
        longer, shorter = steps.warmup_step + 1, steps.train_step - 1
        ways = [
            (f"set {total}: {longer} or more", {"train_step": longer}),
            (f"warmup_step: {shorter} or less", {"warmup_step": shorter}),
            none,
        ]
        found.append(_Fault(total, what, ways))
    if steps.by_epochs and steps.epochs <= 0:
        what = f"is {steps.epochs:g}, and nothing else gives the schedule a step"
        if steps.repeats:
            what = f"is {steps.epochs:g}, and the schedule would be run that many times"
        ways = [
            ("set num_train_epochs above 0", {"epochs": 1}),
            ("leave num_train_epochs out", {"repeat": False, "epochs": 3} if steps.repeat else {}),
            ("set train_step", {"train_step": steps.warmup_step + 1}),
            ("set update_step and update_times", {"update_step": 1, "update_times": 1}),
        ]
        found.append(_Fault("num_train_epochs", what, ways))
    return found
