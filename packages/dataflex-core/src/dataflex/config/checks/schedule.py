"""The schedule: whether the updates that are asked for can happen, and whether the run has a step at all.

``validate`` asks with the keys of a file, the trainers with the arguments that they were given.
"""

from __future__ import annotations

from dataclasses import replace

from dataflex.config.checks.draft import Draft
from dataflex.core.errors import Problem
from dataflex.core.schedule import Steps

STEP_KEYS = frozenset({"warmup_step", "update_step", "update_times", "train_step"})


def with_max_steps(draft: Draft) -> tuple[Draft, list[Problem]]:
    """Returns the draft with LLaMA-Factory's ``max_steps`` taken as ``train_step``, and a problem where both differ."""
    max_steps = draft.count("max_steps", -1)
    if draft.kind is None or max_steps <= 0:
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
    return [] if draft.kind is None else step_problems(draft.steps)


def step_problems(steps: Steps) -> list[Problem]:
    """Returns what is wrong with the steps and updates of a dynamic run."""
    asked = steps.update_times > 0 or (steps.decides and steps.update_times == -1)
    problems = []
    if steps.update_step < 1 and asked:
        times = "updates until the end" if steps.update_times == -1 else f"{steps.update_times} updates"
        what = f"is {steps.update_step}, but update_times: {steps.update_times} asks for {times}"
        problems.append(Problem("update_step", what, "give the steps between two updates, or set update_times: 0"))
    if steps.decides and asked and 0 < steps.train_step <= steps.warmup_step:
        what = f"is {steps.train_step}, so the run ends before its first update (warmup_step: {steps.warmup_step})"
        problems.append(Problem("train_step", what, "train longer, warm up shorter, or set update_times: 0"))
    if steps.by_epochs and steps.epochs <= 0:
        what = f"is {steps.epochs:g}, and nothing else gives the schedule a step"
        way_out = "set num_train_epochs, or train_step, or update_step and update_times"
        problems.append(Problem("num_train_epochs", what, way_out))
    return problems
