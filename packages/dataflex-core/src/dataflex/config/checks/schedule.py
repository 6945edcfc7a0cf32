"""The schedule: whether the updates that are asked for can happen, and whether the run has a step at all."""

from __future__ import annotations

from dataclasses import replace

from dataflex.config.checks.draft import Draft
from dataflex.core.errors import Problem

STEP_KEYS = frozenset({"warmup_step", "update_step", "update_times", "train_step"})


def with_max_steps(draft: Draft) -> tuple[Draft, list[Problem]]:
    """Returns the draft with LLaMA-Factory's ``max_steps`` taken as ``train_step``, and a problem where both differ."""
    max_steps = draft.count("max_steps", -1)
    if draft.kind is None or max_steps <= 0:
        return draft, []
    asked = draft.arguments.train_step
    if asked not in (0, max_steps):
        return draft, [Problem("train_step", f"is {asked} and max_steps is {max_steps}", "remove one of the two")]
    return replace(draft, arguments=replace(draft.arguments, train_step=max_steps)), []


def schedule_problems(draft: Draft) -> list[Problem]:
    """Returns what is wrong with the numbers of steps taken together."""
    return [] if draft.kind is None else [*_updates(draft), *_no_steps(draft)]


def _updates(draft: Draft) -> list[Problem]:
    a = draft.arguments
    decides = draft.arguments.train_type != "dynamic_weight" and not draft.static_mix
    asked = a.update_times > 0 or (decides and a.update_times == -1)
    problems = []
    if a.update_step == 0 and asked:
        times = "updates until the end" if a.update_times == -1 else f"{a.update_times} updates"
        what = f"is 0, but update_times: {a.update_times} asks for {times}"
        problems.append(Problem("update_step", what, "give the steps between two updates, or set update_times: 0"))
    if decides and asked and 0 < a.train_step <= a.warmup_step:
        what = f"is {a.train_step}, so the run ends before its first update (warmup_step: {a.warmup_step})"
        problems.append(Problem("train_step", what, "train longer, warm up shorter, or set update_times: 0"))
    return problems


def _no_steps(draft: Draft) -> list[Problem]:
    a = draft.arguments
    epochs = draft.number("num_train_epochs", 3.0)
    formula = a.warmup_step + a.update_step * a.update_times if a.update_times >= 0 else 0
    by_epochs = a.train_step == 0 and (formula == 0 or a.train_type == "dynamic_select")
    if not by_epochs or epochs > 0:
        return []
    what = f"is {epochs:g}, and nothing else gives the schedule a step"
    return [Problem("num_train_epochs", what, "set num_train_epochs, or train_step, or update_step and update_times")]
