"""From the keywords of a call to the keys of a YAML: the short form of one axis, or ``train_type: dynamic``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataflex.api.chosen import NAME, choice
from dataflex.api.keywords import AXES, PARAMS
from dataflex.config.arguments import COMPOSED, DataflexArguments
from dataflex.config.axis_keys import BY, COMPONENT, OVER
from dataflex.core.errors import Problem, nearest
from dataflex.core.kinds import KINDS, ORDER


@dataclass
class Said:
    """The keys of a run, and what is wrong with how they were given.

    Attributes:
        ours: dataflex's keys.
        problems: What is wrong.
        axis: The keyword of the one axis of a short form; blank where there is none.
    """

    ours: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)
    axis: str = ""


def said_keys(given: Mapping[str, Any]) -> Said:
    """Returns the keys of dataflex that the keywords of a call stand for; others are left out."""
    names = DataflexArguments.names()
    said = Said({key: _plain(value) for key, value in given.items() if key in names and key not in AXES})
    axes = [axis for axis in AXES if axis in given]
    if _only_scores(given.get(ORDER.name)) and given.get("component_name") is not None:  # as the keys of a YAML
        said.ours[ORDER.name] = dict(given[ORDER.name])
        axes.remove(ORDER.name)
    if axes and (len(axes) > 1 or given.get("train_type") == COMPOSED or _is_part(given[axes[0]])):
        return _composed(said, given, axes)
    if not axes:
        return _without_axis(said, given)
    said.axis = axes[0]
    kind = next(kind for kind in KINDS if kind.name == axes[0])
    twice = [key for key in ("component_name", "train_type") if said.ours.get(key) not in (None, kind.train_type)]
    said.problems += [Problem(key, f"says what {kind.name}= says already", "leave it out") for key in twice]
    chosen = choice(kind, given[kind.name], kind.name)
    said.problems += chosen.problems
    said.ours |= {"train_type": kind.train_type} | ({} if chosen.name is None else {"component_name": chosen.name})
    if chosen.rest:
        said.ours[kind.name] = dict(chosen.rest)
    if chosen.plugins:
        said.ours["plugins"] = [*_files(said.ours.get("plugins", [])), *chosen.plugins]
    return _with_params(said, given, chosen.params)


def _without_axis(said: Said, given: Mapping[str, Any]) -> Said:
    """Takes the axis from ``train_type``, as the keys of a YAML are given; a static mixture needs no mixer."""
    if said.ours.get("static_mix") is True:
        said.ours.setdefault("train_type", "dynamic_mix")
    train_type = said.ours.get("train_type")
    misspelt = any(nearest(key, AXES) for key in given)
    if train_type in (None, "static") and not misspelt:
        what = "nothing is dynamic: no selector, mixer, order or weighter is given"
        said.problems.append(Problem(" | ".join(AXES), what, "name one, as in selector='NAME', or use the trainer"))
        said.ours.pop("train_type", None)
    return _with_params(said, given, None)


def _with_params(said: Said, given: Mapping[str, Any], own: Mapping[str, Any] | None) -> Said:
    """Puts the parameters of the component together; each may be given in one place."""
    places = {f"{said.axis}.params": own, PARAMS: given.get(PARAMS), "component": said.ours.get("component")}
    there = {place: params for place, params in places.items() if params is not None}
    if len(there) > 1:
        what = "are both given; they mean the same"
        said.problems.append(Problem(" and ".join(there), what, "give the parameters of the component once"))
    for place, params in there.items():
        if isinstance(params, Mapping):
            said.ours["component"] = dict(params)
        elif place == PARAMS:
            what = f"found {params!r:.80}, allowed: a mapping from parameters to values"
            said.problems.append(Problem(PARAMS, what, "write params={'NAME': VALUE}"))
    return said


def _only_scores(order: Any) -> bool:
    """Whether ``order`` says what stands beside the ``component_name`` of ``dynamic_reorder``."""
    return isinstance(order, Mapping) and bool(order) and order.keys() <= {BY, OVER}


def _is_part(value: Any) -> bool:
    """Whether what an axis is given only ``train_type: dynamic`` has: a list, or ``every``, ``from`` and ``keep``."""
    short = (NAME, COMPONENT, PARAMS, BY, OVER)
    return isinstance(value, list | tuple) or (isinstance(value, Mapping) and any(key not in short for key in value))


def _composed(said: Said, given: Mapping[str, Any], axes: list[str]) -> Said:
    """Takes each axis as a key of ``train_type: dynamic``."""
    if said.ours.get("train_type") not in (None, COMPOSED):
        what = f"is {said.ours['train_type']!r}, and {' and '.join(axes)} together are train_type={COMPOSED!r}"
        said.problems.append(Problem("train_type", what, "leave it out"))
    if given.get(PARAMS) is not None:
        way_out = f"write {axes[0]}={{'name': ..., 'params': ...}}"
        said.problems.append(Problem(PARAMS, "does not say of which component", way_out))
    said.ours["train_type"] = COMPOSED
    for kind in (kind for kind in KINDS if kind.name in axes):
        value = given[kind.name]
        listed = isinstance(value, list | tuple)
        places = [f"{kind.name}[{number}]" for number in range(len(value))] if listed else [kind.name]
        chosen = [choice(kind, each, at) for each, at in zip(value if listed else [value], places, strict=True)]
        parts = [{COMPONENT: each.name, PARAMS: each.params, **each.rest} for each in chosen]
        if all(each.name is not None for each in chosen):
            said.ours[kind.name] = parts if listed else parts[0]
        said.problems += [problem for each in chosen for problem in each.problems]
        plugins = [file for each in chosen for file in each.plugins]
        if plugins:
            said.ours["plugins"] = [*_files(said.ours.get("plugins", [])), *plugins]
    return said


def _plain(value: Any) -> Any:
    """Returns a path, or paths in a list, as text."""
    if isinstance(value, Path):
        return str(value)
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _files(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value)
