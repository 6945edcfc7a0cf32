"""From the keywords of a call to a checked run. Imports no trainer and loads no model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dataflex.api.axes import said_keys
from dataflex.api.keywords import PARAMS, Keywords, allowed
from dataflex.config.check import run_spec
from dataflex.config.checks.combination import combination_problems
from dataflex.config.checks.keys import of_component, parse_arguments
from dataflex.config.checks.known_component import resolved_components
from dataflex.config.checks.parsed_config import Draft, KnownPart
from dataflex.config.checks.source_keys import source_problems
from dataflex.config.checks.steps import STEP_KEYS, schedule_problems
from dataflex.config.checks.warnings import notes
from dataflex.config.known_keys import training_keys
from dataflex.config.spec import RunSpec
from dataflex.core.errors import InvalidConfigError, Problem, nearest
from dataflex.utils.logging import logger

_CLASS = frozenset({"target_dataset", "mixer_eval_dataset", "overwrite_output_dir"})  # taken beside the base's own


@dataclass(frozen=True)
class CheckedRun:
    """What a call asked for.

    Attributes:
        spec: The run.
        known: Its components, with what is known of them; none for a static mixture.
        keywords: The call's, with paths made absolute: they make the same run in another process.
    """

    spec: RunSpec
    known: tuple[KnownPart, ...]
    keywords: Keywords


def checked_run(base: type[Any], keywords: Mapping[str, Any]) -> CheckedRun:
    """Returns the run that the keywords describe; imports the plugin files, and a component that is not dataflex's own.

    Raises:
        InvalidConfigError: Every problem that was found.
        TypeError: ``base`` is no trainer.
    """
    if not inspect.isclass(base) or not any(each.__module__ == "transformers.trainer" for each in base.__mro__):
        raise TypeError(f"dynamic takes transformers.Trainer or a subclass, found {base!r:.100}")
    given = {key: value for key, value in keywords.items() if value is not None}
    said = said_keys(given)
    said.problems += [_unknown(base, key, given[key]) for key in given if key not in allowed()]
    arguments, problems = parse_arguments(said.ours, Path.cwd())
    problems = [*said.problems, *problems]
    draft = Draft(arguments, {}, frozenset(said.ours), frozenset(problem.where for problem in problems))
    wrong = {problem.where for problem in problems}
    if "train_type" in said.ours and "train_type" not in wrong:
        found: list[Problem] = []
        if not said.axis or said.axis not in {where.partition(".")[0] for where in wrong}:
            found, draft = resolved_components(draft)
            found += [*combination_problems(draft), *source_problems(draft)]
        problems += schedule_problems(draft) if wrong.isdisjoint(STEP_KEYS) else []
        problems += [_in_keywords(problem, said.axis, given) for problem in found]
    if problems:
        raise InvalidConfigError(problems)
    for note in notes(draft, {}):
        logger.warning(note)
    paths = {key: vars(arguments)[key] for key in ("components_cfg_file", "plugins") if key in said.ours}
    kept: Any = given | {key: list(value) if isinstance(value, tuple) else value for key, value in paths.items()}
    return CheckedRun(run_spec(draft), draft.known, kept)


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
