"""The points that a component is held against: each looks at runs of it, and says what is wrong in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from dataflex.core.component import Component
from dataflex.core.errors import ComponentError, DataflexError
from dataflex.core.kinds import SELECTOR
from dataflex.run.state import load_state, require_savable, save_state
from dataflex.testing.call_watch import DECIDES, same
from dataflex.testing.conformance_declared import cost_point, parameters_point
from dataflex.testing.conformance_ranks import ranks_point
from dataflex.testing.conformance_report import Finding
from dataflex.testing.conformance_shared_runs import Trials
from dataflex.testing.conformance_trial import SAVED, Outcome, made, of_subject, run
from dataflex.testing.wrong_answers import TWICE, WRONG, Spoil

_SHORT: Mapping[str, Any] = {"warmup_step": 1, "update_step": 1, "update_times": 1}


def trains(trials: Trials) -> Finding:
    """It trains to the end, and is asked to decide."""
    if trials.failed:
        return Finding("trains", (f"the run ended: {trials.failed}",))
    if not trials.whole.decided:
        return Finding("trains", ("it was never asked to decide -> give keys= for a longer run",))
    return Finding("trains")


def disturbs_nothing(trials: Trials) -> Finding:
    """Weights, gradients, optimizer, training mode, and in training the global generators are as they were."""
    changes: list[str] = []
    if trials.failed:
        changes = _watched_changes(trials)
    wrong = tuple(changes or ([] if trials.failed else trials.whole.changed))
    return Finding("disturbs nothing", wrong, "" if wrong or not trials.failed else _NO_RUN)


def _watched_changes(trials: Trials) -> list[str]:
    """Returns what a run that ends early has changed until then."""
    from dataflex.testing.call_watch import CallWatch

    trainer = made(trials.subject, trials.folder("watched"))
    watch = CallWatch(trainer, trials.subject.kind)
    for component in of_subject(trainer, trials.subject):
        watch.stand_before(component)
    try:
        trainer.train()
    except DataflexError:
        return list(watch.changed)
    return list(watch.changed)


def resume_is_exact(trials: Trials) -> Finding:
    """A run that begins at a checkpoint ends as the run that was never stopped, bit for bit.

    Its global generators are set to other states before each decision, so that a decision which depends on them shows.
    """
    point = "resume is exact"
    if trials.failed:
        return Finding(point, note=_NO_RUN)
    different = _ends_differ(trials.whole, trials.resumed(scrambled=True))
    if not different:
        return Finding(point)
    if _ends_differ(trials.whole, trials.resumed(scrambled=False)):
        return Finding(
            point,
            (f"resumed at step {SAVED}, the run has another {different} -> state_dict must return all it remembers",),
        )
    what = f"its decisions depend on the global random generators ({different} differs) -> draw from self.generator"
    return Finding(point, (what,))


def _ends_differ(whole: Outcome, resumed: Outcome) -> str:
    """Returns the first thing that the ends of two runs differ in; blank where they are equal."""
    last = {name: arrays["indices"] for name, arrays in resumed.segments.items()}
    for name, rows in last.items():
        if name not in whole.segments or not np.array_equal(rows, whole.segments[name]["indices"]):
            return f"choice of rows in {name}"
    if not same(whole.state, resumed.state):
        return "state at its end"
    return next((name for name, value in whole.end.items() if not same(value, resumed.end.get(name))), "")


def state_is_safe(trials: Trials) -> Finding:
    """What it remembers goes into a file that runs no code when it is read, and back."""
    point = "state"
    if not issubclass(trials.subject.cls, Component):
        return Finding(point, note="it inherits nothing, and keeps no state")
    if trials.failed:
        return _state_of_new(trials, point)
    state, file = trials.whole.state, trials.folder("state")
    try:
        require_savable(state, trials.subject.who)
    except ComponentError as error:
        return Finding(point, (str(error),))
    file.mkdir(exist_ok=True)
    save_state(file, {"identity": {}, "component": state})
    kept = load_state(file)["component"]
    trainer = made(trials.subject, trials.folder("fresh"))
    component = of_subject(trainer, trials.subject)[0]
    component.load_state_dict(kept)
    again = component.state_dict()
    if not same(_plain(again), _plain(state)):
        keys = [str(key) for key in {*again, *state} if not same(_plain(again.get(key)), _plain(state.get(key)))]
        return Finding(
            point,
            (f"state_dict after load_state_dict differs at '{sorted(keys)[0]}' -> load_state_dict must restore it",),
        )
    return Finding(point)


def _state_of_new(trials: Trials, point: str) -> Finding:
    """Looks at the state of a component that has not decided yet, where a run could not be had."""
    try:
        trainer = made(trials.subject, trials.folder("new"))
        require_savable(of_subject(trainer, trials.subject)[0].state_dict(), trials.subject.who)
    except DataflexError as error:
        return Finding(point, (str(error),))
    return Finding(point, note=_NO_RUN)


def _plain(value: Any) -> Any:
    """Returns a state with NumPy's numbers and tuples as a file gives them back."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def wrong_answers_are_caught(trials: Trials) -> Finding:
    """An answer that cannot be trained on ends the run, naming the component."""
    subject, wrong = trials.subject, []
    if trials.failed:
        return Finding("wrong answers are caught", note=_NO_RUN)
    spoils = dict(WRONG[subject.kind])
    for number, (words, spoil) in enumerate(spoils.items()):
        said = _said_of(trials, spoil, f"wrong-{number}")
        if said is not None:
            wrong.append(f"{words} {said}")
    if subject.kind is SELECTOR and not trials.whole.repeats:
        said = _said_of(trials, TWICE["a row again and again"], "wrong-twice")
        if said is not None:
            wrong.append(f"a row again and again {said}")
    return Finding("wrong answers are caught", tuple(wrong))


def _said_of(trials: Trials, spoil: Spoil, name: str) -> str | None:
    """Returns what is wrong with how a run took a wrong answer; None where it refused it."""
    subject = trials.subject

    def prepared(trainer: Any) -> None:
        for component in of_subject(trainer, subject):
            method = vars(component)[DECIDES[subject.kind]]
            vars(component)[DECIDES[subject.kind]] = _spoiled(method, spoil)

    try:
        run(subject, trials.folder(name), prepared=prepared, **_SHORT)
    except ComponentError:
        return None
    except DataflexError as error:
        return f"ended the run by another error: {error}"
    return "was trained on -> let the trainer ask the component, and do not train in its place"


def _spoiled(method: Callable[..., Any], spoil: Spoil) -> Callable[..., Any]:
    def answers(*args: Any, **kwargs: Any) -> Any:
        return spoil(method(*args, **kwargs))

    return answers


def works_in_a_combination(trials: Trials) -> Finding:
    """It decides in a run that has every other kind of component too."""
    point = "works in a combination"
    if trials.failed:
        return Finding(point, note=_NO_RUN)
    try:
        found = run(trials.subject, trials.folder("combined"), combined=True)
    except DataflexError as error:
        return Finding(point, (f"the run ended: {error}",))
    wrong = [*found.changed]
    if not found.decided:
        wrong.append("it was never asked to decide beside the others")
    if not all(np.isfinite(loss) for loss in found.losses):
        wrong.append("the loss is not finite")
    return Finding(point, tuple(wrong))


_NO_RUN = "not looked at, as the run did not come to its end"

POINTS: Mapping[str, Callable[[Trials], Finding]] = {
    "parameters": parameters_point,
    "trains": trains,
    "disturbs nothing": disturbs_nothing,
    "state": state_is_safe,
    "resume is exact": resume_is_exact,
    "wrong answers are caught": wrong_answers_are_caught,
    "works in a combination": works_in_a_combination,
    "cost": cost_point,
    "ranks agree": ranks_point,
}
"""Name -> what looks at it, in the order of the report."""
