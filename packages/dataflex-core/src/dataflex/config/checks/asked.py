"""The components that a run asks for: the one of ``component_name``, or those of its axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataflex.config.arguments import COMPOSED
from dataflex.config.axis_keys import AXES, COMPONENT, FROM, PARAMS
from dataflex.config.checks.parsed_config import Draft
from dataflex.config.component_choice import SHORT_FORM, Place
from dataflex.config.spec import begins
from dataflex.core import registry
from dataflex.core.errors import Problem, listed
from dataflex.core.kinds import KINDS, ORDER, SELECTOR, Kind
from dataflex.discovery.catalog import ComponentInfo


@dataclass(frozen=True)
class Asked:
    """A component that the run asks for.

    Attributes:
        where: Its place in the file.
        kind: The kind that it must be.
        name: The preset or component.
        params: Parameters over those of the preset.
        given: The mapping that it is asked for by, or, with ``component_name``, that of its ``by`` and ``over``.
        place: The keys of its name and its parameters, for messages.
        start: The first global step at which it takes part.
    """

    where: str
    kind: Kind
    name: str
    params: Mapping[str, Any] | None
    given: Mapping[str, Any]
    place: Place
    start: int = 0


def asked_for(draft: Draft, from_files: Sequence[ComponentInfo]) -> tuple[list[Asked], list[Problem]]:
    """Returns the components that a run asks for, in the order of its axes, and what is wrong with how it asks.

    Args:
        draft: The configuration.
        from_files: Components of plugin files that are not imported.
    """
    return (_parts if draft.arguments.train_type == COMPOSED else _short_form)(draft, from_files)


def _short_form(draft: Draft, from_files: Sequence[ComponentInfo]) -> tuple[list[Asked], list[Problem]]:
    a = draft.arguments
    if not a.kinds or draft.static_mix:
        return [], []
    (kind,) = a.kinds
    if a.component_name is not None:
        given = (a.order or {}) if kind is ORDER else {}
        start = begins(kind, a)
        return [Asked("component_name", kind, a.component_name, a.component, given, SHORT_FORM, start)], []
    if "component_name" in draft.written:
        return [], []
    known = {*registry.names(kind), *(i.name for i in from_files if i.kind == kind)}
    what = f"is missing; train_type: {a.train_type} needs {_a(kind)}"
    return [], [Problem("component_name", what, f"name one of: {listed(known)}")]


def _parts(draft: Draft, from_files: Sequence[ComponentInfo]) -> tuple[list[Asked], list[Problem]]:
    a = draft.arguments
    mappings = [(where, SELECTOR, given) for where, given in a.selectors]
    mappings += [(k.name, k, getattr(a, k.name)) for k in KINDS if k is not SELECTOR and getattr(a, k.name) is not None]
    asked, problems = [], []
    for where, kind, given in mappings:
        if COMPONENT in given:
            start = given.get(FROM, begins(kind, a))
            place = Place(where, f"{where}.{PARAMS}")
            asked.append(Asked(where, kind, given[COMPONENT], given.get(PARAMS), given, place, start))
        elif draft.wrong.isdisjoint({where, f"{where}.{COMPONENT}", f"{where}.name"}):
            known = {*registry.names(kind), *(i.name for i in from_files if i.kind == kind)}
            problems.append(Problem(f"{where}.{COMPONENT}", "is missing", f"name one of: {listed(known)}"))
    if not mappings and not any(wrong.partition(".")[0].partition("[")[0] in AXES for wrong in draft.wrong):
        what = f"train_type: {COMPOSED} has no axis: none of {', '.join(AXES)} is given"
        problems.append(Problem("train_type", what, "give one or more of them, or set train_type: static"))
    return asked, problems


def _a(kind: Kind) -> str:
    return f"{'an' if kind is ORDER else 'a'} {kind.name}"
