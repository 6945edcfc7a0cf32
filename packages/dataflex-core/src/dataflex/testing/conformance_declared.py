"""What a component says of itself: its parameters, whether it draws, and what an update costs."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

from dataflex.config.checks.stage_table import asked_for
from dataflex.core.component import Component
from dataflex.core.cost import Ahead, Amount, Cost
from dataflex.core.errors import ConfigError, DataflexError
from dataflex.core.kinds import ORDER
from dataflex.discovery.describe import Expression, describe_class
from dataflex.discovery.stated_checks import stated_problems
from dataflex.interfaces.order import Order
from dataflex.testing.conformance_report import Finding
from dataflex.testing.conformance_shared_runs import Trials
from dataflex.testing.conformance_subject import Subject

_ROWS = Amount(48, 48 * 16, 48 * 13)
_AHEAD = {
    "updates": 2, "rows": _ROWS, "asked": _ROWS.of(16), "target": _ROWS.of(6), "held_out": _ROWS.of(10),
    "sources": 2, "step": _ROWS.of(8), "steps": 2, "micro_batches": 2, "width": 32, "trainable": 21_000,
    "model_bytes": 84_000,
}  # fmt: skip


class _NoSuchValue:
    """A value that no parameter takes."""

    def __repr__(self) -> str:
        return "a value of no kind"


def parameters_point(trials: Trials) -> Finding:
    """Text and constructor have the same parameters; each refuses what is no value; ``draws`` and ``asks`` are true."""
    subject = trials.subject
    info, real = subject.info, describe_class(subject.cls)
    wrong = []
    if not info.summary:
        wrong.append("the class has no docstring -> say in a line what it does, as dataflex-cli list shows it")
    for name, default in real.defaults.items():
        read = info.parameters.get(name, _NoSuchValue)
        if read is _NoSuchValue:
            wrong.append(f"{name} is a parameter that its text does not show -> name it in __init__")
        elif not isinstance(read, Expression) and read != default and repr(read) != repr(default):
            wrong.append(f"{name} has the default {default!r}, and its text says {read!r}")
    said = stated_problems(info.constructors, dict(subject.params), list(subject.source_rows()))
    wrong += [f"validate would refuse what was given: {problem}" for problem in said]
    for name in (*real.defaults, *real.required):
        if info.constructors and not _refuses(subject, name):
            wrong.append(
                f"{name} takes anything -> state what is allowed: require('{subject.name}', ...) in __init__, see "
                "dataflex.core.parameter_checks"
            )
    if issubclass(subject.cls, Component):
        wrong += _asks(subject)
    if issubclass(subject.cls, Component) and not subject.cls.draws and not trials.failed and trials.whole.drew:
        wrong.append("its class says draws = False, and it draws from self.generator -> leave draws out")
    return Finding("parameters", tuple(wrong))


def _asks(subject: Subject) -> list[str]:
    """Returns what is wrong with how the class says what it computes of rows."""
    try:
        asked_for(subject.cls.asks, {**subject.info.parameters, **subject.params})
    except ConfigError as error:
        return [str(error)]
    return []


def _refuses(subject: Subject, name: str) -> bool:
    """Returns whether the checks that a constructor states refuse a value of no kind."""
    names = list(subject.source_rows())
    return any(
        name in problem.where for problem in stated_problems(subject.info.constructors, {name: _NoSuchValue()}, names)
    )


def cost_point(trials: Trials) -> Finding:
    """What it says that an update costs is finite, not negative, and the same when it is asked again."""
    subject, point = trials.subject, "cost"
    if not issubclass(subject.cls, Component):
        return Finding(point, note="it inherits nothing, and says none")
    if subject.kind is ORDER and subject.cls.cost.__func__ is vars(Order)["cost"].__func__:  # type: ignore[attr-defined]
        return Finding(point, note="an order costs nothing")
    params = {**subject.info.parameters, **subject.params}
    wrong = []
    for update in (0, 1):
        ahead = Ahead(update=update, **_AHEAD)  # type: ignore[arg-type]  # a mapping of fields
        try:
            found, again = subject.cls.cost(params, ahead), subject.cls.cost(params, ahead)
        except DataflexError as error:
            return Finding(point, (f"it raised: {error}",))
        if found is None:
            return Finding(point, note="it does not say")
        if not isinstance(found, Cost):
            return Finding(
                point, (f"it returned {type(found).__name__}, allowed: a Cost of dataflex.core.cost, or None",)
            )
        if found != again:
            wrong.append("the same question has two answers")
        wrong += [
            f"{name} is {number}" for name, number in _numbers(found) if not (math.isfinite(number) and number >= 0)
        ]
    return Finding(point, tuple(dict.fromkeys(wrong)))


def _numbers(value: Any, name: str = "cost") -> list[tuple[str, float]]:
    """Returns every number of a cost, with its place."""
    if is_dataclass(value):
        return [pair for each in fields(value) for pair in _numbers(vars(value)[each.name], f"{name}.{each.name}")]
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in _numbers(item, f"{name}[{key!r}]")]
    return [(name, float(value))] if isinstance(value, int | float) else []
