"""The arms of a comparison as whole runs: the base with what differs, the controls, and what each is compared with."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from dataflex.config.axis_keys import AXES, BY, FILE
from dataflex.config.check import check
from dataflex.config.checks.parsed_config import find_path, names_in
from dataflex.config.overrides import overridden
from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError, InvalidConfigError, Problem
from dataflex.experiments.arm_steps import as_static, total_steps
from dataflex.experiments.control_arms import control_of, controls_for, reference_role, same_family
from dataflex.experiments.experiment_file import Experiment
from dataflex.utils.logging import logger

_OF_A_COMPONENT = ("component_name", "component", "static_mix", *AXES)
"""Keys that mean another thing under another train type."""


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared: a run but for its seed and its folder.

    Attributes:
        name: Its name, and its folder's.
        config: The keys of its run, paths of dataflex's made absolute.
        spec: The same, checked.
        control: Whether it is a control.
        against: The arm that it is compared with; None for one that others alone are compared with.
        length: What was done to its length, in words; blank where nothing was.
    """

    name: str
    config: Mapping[str, Any]
    spec: RunSpec
    control: bool = False
    against: str | None = None
    length: str = ""

    @property
    def steps(self) -> int | None:
        """Its optimizer steps; None where they are passes over rows that nobody has counted."""
        return total_steps(self.spec)


def arms_of(experiment: Experiment) -> list[Arm]:
    """Returns every arm, checked as ``dataflex-cli validate`` checks a run: references first, then other controls.

    Raises:
        InvalidConfigError: Everything that is wrong with the base, or with the arms, each with its name.
    """
    with each_warning_once():
        base = _base(experiment)
        own, problems = _own(experiment, base)
        if problems:
            raise InvalidConfigError(problems)
        arms, problems = _with_controls(experiment, base, own) if experiment.controls else (_found(own), [])
        problems += _unlike_in_length(experiment, base, arms) + _not_evaluated(experiment, arms)
    if problems:
        raise InvalidConfigError(problems)
    arms = [replace(arm, against=_reference(arm, arms)) for arm in arms]
    used = {arm.against for arm in arms}
    return sorted(arms, key=lambda arm: (arm.name not in used, not arm.control))


def checked(name: str, config: Mapping[str, Any], experiment: Experiment, **facts: Any) -> Arm:
    """Returns an arm of a configuration.

    Raises:
        InvalidConfigError: Everything that is wrong with it, as ``arms.NAME: KEY``.
    """
    try:
        spec = check({**config, "output_dir": str(experiment.output_dir)}, experiment.base.parent)
    except InvalidConfigError as error:
        raise InvalidConfigError([Problem(f"{name}: {p.where}", p.what, p.way_out) for p in error.problems]) from error
    return Arm(name.removeprefix("arms.").removeprefix("control "), config, spec, **facts)


def _base(experiment: Experiment) -> Arm:
    return checked("base", with_absolute_paths(experiment.config, experiment.base.parent), experiment)


def _own(experiment: Experiment, base: Arm) -> tuple[list[Arm], list[Problem]]:
    """Returns the arms of the file, and what is wrong with them."""
    arms: list[Arm] = []
    problems: list[Problem] = []
    for name, keys in experiment.arms.items():
        try:
            config = merged(experiment.config, keys, base.steps)
            arms.append(checked(f"arms.{name}", with_absolute_paths(config, experiment.base.parent), experiment))
        except InvalidConfigError as error:
            problems += error.problems
        except ConfigError as error:
            problems.append(Problem(f"arms.{name}", str(error)))
    return arms, problems


def merged(base: Mapping[str, Any], keys: Mapping[str, Any], steps: int | None) -> dict[str, Any]:
    """Returns the base with what differs.

    Another train type leaves the base's component and axes behind, another component its parameters. A static arm has
    as many steps as the base, unless it says how many.

    Args:
        base: The keys of the base.
        keys: Those that differ; ``component.focus`` and ``selector.0.keep`` reach into a mapping or a list, as
            overrides on the command line do, and null takes a key out.
        steps: Steps of the base.

    Raises:
        ConfigError: A key reaches into what has no such place.
    """
    config = dict(base)
    plain = {key: value for key, value in keys.items() if "." not in key}
    if plain.get("train_type", config.get("train_type")) != config.get("train_type"):
        config = {key: value for key, value in config.items() if key not in _OF_A_COMPONENT}
        if plain["train_type"] == "static":
            config = as_static(config, None if {"max_steps", "num_train_epochs"} & plain.keys() else steps)
    elif plain.get("component_name", config.get("component_name")) != config.get("component_name"):
        config.pop("component", None)
    config |= plain
    for key in keys.keys() - plain.keys():
        config = overridden(config, f"{key}={_in_a_line(keys[key])}")
    return {key: value for key, value in config.items() if value is not None}


def _in_a_line(value: Any) -> str:
    return yaml.safe_dump([value], default_flow_style=True, width=math.inf, allow_unicode=True).strip()[1:-1]


def with_absolute_paths(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a run whose file may lie anywhere: paths that are looked for beside its file made absolute.

    Args:
        config: The run.
        folder: The folder of its file.
    """
    found = dict(config)
    if isinstance(found.get("components_cfg_file"), str):
        found["components_cfg_file"] = str(find_path(found["components_cfg_file"], folder))
    if found.get("plugins"):
        found["plugins"] = [str(find_path(path, folder)) for path in names_in(found["plugins"])]
    order = found.get("order")
    if isinstance(order, Mapping) and str(order.get(BY)).startswith(FILE):
        found["order"] = {**order, BY: FILE + str(find_path(str(order[BY]).removeprefix(FILE).strip(), folder))}
    return found


def _with_controls(experiment: Experiment, base: Arm, own: list[Arm]) -> tuple[list[Arm], list[Problem]]:
    """Returns the arms with the controls of their kinds; one that the file has already is not added."""
    arms, problems = _found(own), []
    for arm in own:
        template = base if same_family(base.spec, arm.spec) else next(a for a in own if same_family(a.spec, arm.spec))
        for role, config in controls_for(template.config, template.spec, base.steps):
            if any(control_of(known.spec, arm.spec) == role for known in arms):
                continue
            name = _free_name(role, arm, {known.name for known in arms if known.control})
            if any(known.name == name for known in arms):
                what = f"is the name of a control, and this arm is not the control '{role}' of {arm.name}"
                problems.append(Problem(f"arms.{name}", what, "rename it, or set controls: false"))
                continue
            try:
                arms.append(checked(f"control {name}", config, experiment, control=True))
            except InvalidConfigError as error:
                problems += [replace(p, way_out=f"{p.way_out}; controls: false leaves it out") for p in error.problems]
                return arms, problems
    return arms, problems


def _found(own: list[Arm]) -> list[Arm]:
    """Returns the arms of the file, marked where they are the control of one that is none itself."""
    tried = [arm for arm in own if control_of(arm.spec, arm.spec) is None]
    return [replace(arm, control=any(control_of(arm.spec, other.spec) for other in tried)) for arm in own]


def _free_name(role: str, arm: Arm, taken: set[str]) -> str:
    kind = arm.spec.arguments.train_type.removeprefix("dynamic_")
    return next(name for name in (role, f"{role}-{kind}", f"{role}-{arm.name}") if name not in taken)


def _reference(arm: Arm, arms: list[Arm]) -> str | None:
    """Returns the arm that one is compared with; None for one that others alone are compared with.

    That is the control of its kind, without controls the first arm. A control is compared with that of the first arm.
    """
    own = [other for other in arms if not other.control]
    of = own[0] if arm.control else arm
    roles = {control_of(other.spec, of.spec): other.name for other in reversed(arms) if other.control}
    named = next((roles[role] for role in (reference_role(of.spec), "random", "static") if role in roles), None)
    found = named or next((other.name for other in arms if other.control), own[0].name)
    if arm.control and any(_reference(other, arms) == arm.name for other in own):
        return None
    return None if found == arm.name else found


def _unlike_in_length(experiment: Experiment, base: Arm, arms: list[Arm]) -> list[Problem]:
    """Returns a problem for each arm with other steps than the base, where steps are to be equal."""
    if experiment.equal != "steps":
        return []
    problems = []
    for arm in arms:
        if arm.steps is not None and base.steps is not None and arm.steps != base.steps:
            what = f"has {arm.steps} steps and the base {base.steps}; equal: steps holds them equal"
            key = "train_step" if arm.spec.arguments.dynamic else "max_steps"
            way_out = f"set {key}: {base.steps} in it, or equal: tokens | compute"
            problems.append(Problem(f"arms.{arm.name}", what, way_out))
    return problems


def _not_evaluated(experiment: Experiment, arms: list[Arm]) -> list[Problem]:
    """Returns a problem for each arm without an evaluation, where a metric is of one."""
    if experiment.metrics and not any(name.startswith("eval_") for name in experiment.metrics):
        return []
    without: dict[tuple[str, str, str], list[str]] = {}
    for arm in arms:
        theirs = arm.spec.llamafactory
        if not (theirs.get("eval_dataset") or theirs.get("val_size")):
            what = "gives no evaluation rows, and there is nothing to compare by"
            without.setdefault(("eval_dataset", what, "set eval_dataset, or val_size"), []).append(arm.name)
        elif theirs.get("do_eval") is not True and theirs.get("eval_strategy") not in ("steps", "epoch"):
            way_out = "set do_eval: true, which evaluates after the last step"
            without.setdefault(("do_eval", "nothing is evaluated", way_out), []).append(arm.name)
    return [Problem(key, f"{what} ({', '.join(names)})", way_out) for (key, what, way_out), names in without.items()]


@contextmanager
def each_warning_once() -> Iterator[None]:
    """Lets a warning through once that the checks of several arms give."""
    heard: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not (text in heard or heard.add(text))  # type: ignore[func-returns-value]

    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)
