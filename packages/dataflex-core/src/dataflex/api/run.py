"""From the keywords of a call to a checked run. Imports no trainer and loads no model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dataflex.api.chosen import choice
from dataflex.api.keywords import AXES, PARAMS, Keywords, allowed
from dataflex.config.arguments import DataflexArguments
from dataflex.config.checks.component import resolved_component
from dataflex.config.checks.draft import Draft
from dataflex.config.checks.keys import of_component, parse_arguments
from dataflex.config.checks.notes import notes
from dataflex.config.checks.schedule import STEP_KEYS, schedule_problems
from dataflex.config.known_keys import training_keys
from dataflex.config.spec import RunSpec
from dataflex.core.catalog import ComponentInfo
from dataflex.core.errors import InvalidConfigError, Problem, nearest
from dataflex.core.kinds import KINDS
from dataflex.utils.logging import logger

_CLASS = frozenset({"target_dataset", "mixer_eval_dataset", "overwrite_output_dir"})  # taken beside the base's own


@dataclass(frozen=True)
class CheckedRun:
    """What a call asked for.

    Attributes:
        spec: The run.
        info: What is known of its component; None for a static mixture.
        keywords: The call's, with paths made absolute: they make the same run in another process.
    """

    spec: RunSpec
    info: ComponentInfo | None
    keywords: Keywords


@dataclass
class _Said:
    """The keys of a run, and what is wrong with how they were given."""

    ours: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)
    axis: str = ""


def checked_run(base: type[Any], keywords: Mapping[str, Any]) -> CheckedRun:
    """Returns the run that the keywords describe; imports the plugin files, and a component that is not dataflex's own.

    Raises:
        InvalidConfigError: Every problem that was found.
        TypeError: ``base`` is no trainer.
    """
    if not inspect.isclass(base) or not any(each.__module__ == "transformers.trainer" for each in base.__mro__):
        raise TypeError(f"dynamic takes transformers.Trainer or a subclass, found {base!r:.100}")
    given = {key: value for key, value in keywords.items() if value is not None}
    said = _keys(base, given)
    arguments, problems = parse_arguments(said.ours, Path.cwd())
    draft = Draft(arguments, {}, frozenset(said.ours), frozenset(problem.where for problem in problems))
    problems = [*said.problems, *problems]
    wrong = {problem.where for problem in problems}
    info = spec = None
    if "train_type" in said.ours and "train_type" not in wrong:
        problems += schedule_problems(draft) if wrong.isdisjoint(STEP_KEYS) else []
        if not said.axis or said.axis not in {where.partition(".")[0] for where in wrong}:
            found, spec, info = resolved_component(draft)
            problems += [_in_keywords(problem, said.axis, given) for problem in found]
    if problems:
        raise InvalidConfigError(problems)
    for note in notes(draft, {}):
        logger.warning(note)
    paths = {key: vars(arguments)[key] for key in ("components_cfg_file", "plugins") if key in said.ours}
    kept: Any = given | {key: list(value) if isinstance(value, tuple) else value for key, value in paths.items()}
    return CheckedRun(RunSpec(arguments, spec), info, kept)


def _keys(base: type[Any], given: Mapping[str, Any]) -> _Said:
    """Returns the keys of dataflex that the keywords stand for."""
    names = DataflexArguments.names()
    said = _Said({key: _plain(value) for key, value in given.items() if key in names})
    said.problems += [_unknown(base, key, given[key]) for key in given if key not in allowed()]
    axes = [axis for axis in AXES if axis in given]
    if len(axes) > 1:
        what = "are given together; a run has one of them so far"
        said.problems.append(Problem(" and ".join(axes), what, f"leave out {' and '.join(axes[1:])}"))
        return said
    if not axes:
        return _without_axis(said, given)
    said.axis = axes[0]
    kind = next(kind for kind in KINDS if kind.name == axes[0])
    twice = [key for key in ("component_name", "train_type") if said.ours.get(key) not in (None, kind.train_type)]
    said.problems += [Problem(key, f"says what {kind.name}= says already", "leave it out") for key in twice]
    chosen = choice(kind, given[kind.name])
    said.problems += chosen.problems
    said.ours |= {"train_type": kind.train_type} | ({} if chosen.name is None else {"component_name": chosen.name})
    if chosen.plugins:
        said.ours["plugins"] = [*_files(said.ours.get("plugins", [])), *chosen.plugins]
    return _with_params(said, given, chosen.params)


def _without_axis(said: _Said, given: Mapping[str, Any]) -> _Said:
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


def _with_params(said: _Said, given: Mapping[str, Any], own: Mapping[str, Any] | None) -> _Said:
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


def _unknown(base: type[Any], key: str, value: Any) -> Problem:
    """Returns the problem of a keyword that there is not, and where it is meant to stand."""
    if key in {*_constructor_names(base), *_CLASS}:
        way_out = f"give it to the class: dynamic({base.__name__}, ...)({key}=...)"
        return Problem(key, f"is an argument of the trainer, not of dynamic({base.__name__}, ...)", way_out)
    hint = nearest(key, allowed())
    if key in (known := training_keys()):
        ways = [f"give it in args: TrainingArguments({key}=...)", hint]
        return Problem(key, "is one of the training arguments", ", or: ".join(filter(None, ways)))
    if not hint and (component := of_component(key, value)) is not None:
        return replace(component, way_out=f"write params={{'{key}': ...}}")
    return Problem(key, "dynamic has no such keyword", hint or nearest(key, known) or "see docs/configuration.md")


def _constructor_names(base: type[Any]) -> set[str]:
    inits = [vars(cls)["__init__"] for cls in base.__mro__ if "__init__" in vars(cls) and cls is not object]
    return {name for init in inits for name in inspect.signature(init).parameters} - {"self", "kwargs"}


def _in_keywords(problem: Problem, axis: str, given: Mapping[str, Any]) -> Problem:
    """Returns a problem under the keyword that the call has for the key."""
    where = problem.where
    if axis and where == "component_name":
        return replace(problem, where=axis)
    if where.startswith("component.") and "component" not in given:
        place = PARAMS if PARAMS in given else f"{axis}.params"
        return replace(problem, where=f"{place}.{where.removeprefix('component.')}")
    return problem


def _plain(value: Any) -> Any:
    """Returns a path, or paths in a list, as text."""
    if isinstance(value, Path):
        return str(value)
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _files(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value)
