"""The component: named, known, its parameters right; and the plugin files that may bring it.

This project's own components are not imported. Plugin files are, and a component of another package: whether they can
be is known in no other way, and the run would end there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dataflex.config.checks.draft import Draft, names_in
from dataflex.config.components import resolve
from dataflex.config.components_file import read_components
from dataflex.config.spec import ComponentSpec
from dataflex.core import registry
from dataflex.core.catalog import ComponentInfo, lookup
from dataflex.core.errors import ConfigError, InvalidConfigError, Problem, UnknownComponentError, listed
from dataflex.core.plugin_files import plugin_file, scan_plugin_file
from dataflex.core.plugins import load_plugin_files


def component_problems(draft: Draft) -> tuple[list[Problem], ComponentSpec | None, ComponentInfo | None]:
    """Returns what is wrong, and the component with what is known about it where nothing is."""
    problems, spec, info = resolved_component(draft)
    return [*problems, *_without_target(draft, info)], spec, info


def resolved_component(draft: Draft) -> tuple[list[Problem], ComponentSpec | None, ComponentInfo | None]:
    """Does what :func:`component_problems` does, without a look at the evaluation sets of the run."""
    problems, from_files = _plugins(draft.arguments.plugins)
    if draft.kind is None or draft.static_mix:
        return [*problems, *_misplaced(draft)], None, None
    problems += _misplaced(draft)
    name = draft.arguments.component_name
    if name is None:
        if "component_name" not in draft.written:
            known = {*registry.names(draft.kind), *(i.name for i in from_files if i.kind == draft.kind)}
            what = f"is missing; train_type: {draft.arguments.train_type} needs a {draft.kind.name}"
            problems.append(Problem("component_name", what, f"name one of: {listed(known)}"))
        return [*problems, *_components_file(draft)], None, None
    try:
        spec = _resolved(draft, name, from_files)
        _import(spec, known_broken=bool(problems))
    except InvalidConfigError as error:
        return [*problems, *error.problems], None, None
    except UnknownComponentError as error:
        broken = bool(problems) and draft.arguments.plugins  # it may well stand in the file that cannot be read
        return problems if broken else [*problems, Problem("component_name", str(error))], None, None
    except ConfigError as error:
        return [*problems, Problem("component_name", str(error))], None, None
    local = {info.name: info for info in from_files if info.kind == draft.kind}
    info = lookup(draft.kind, spec.name) or local.get(spec.name)
    return problems, spec, info


def _without_target(draft: Draft, info: ComponentInfo | None) -> list[Problem]:
    """Checks that there is an evaluation set for a component that aims at one."""
    evaluated, split = names_in(draft.theirs.get("eval_dataset")), draft.number("val_size", 0)
    return [
        *no_target(info, bool(evaluated or split or draft.theirs.get("tokenized_path")), _NAME_TARGET),
        *no_held_out(info, bool(draft.arguments.mixer_eval_dataset or (split and not evaluated)), _NAME_HELD_OUT),
    ]


_NAME_TARGET = "name one, or set val_size to hold rows out of the train dataset"
_NAME_HELD_OUT = "name one dataset per dataset, or set val_size, without eval_dataset, to hold rows out of each"


def no_target(info: ComponentInfo | None, there: bool, way_out: str) -> list[Problem]:
    """Returns the problem of a component that aims at evaluation rows where there are none.

    Args:
        info: The component.
        there: Whether there are some.
        way_out: How to give them.
    """
    if there or info is None or "mixer_eval_dataset" in info.needs or "eval_dataset" not in info.needs:
        return []
    return [Problem("eval_dataset", f"is missing; the {info.kind.name} '{info.name}' aims at one", way_out)]


def no_held_out(info: ComponentInfo | None, there: bool, way_out: str) -> list[Problem]:
    """As :func:`no_target`, for a mixer that looks at held-out rows of each source."""
    if there or info is None or "mixer_eval_dataset" not in info.needs:
        return []
    what = f"is missing; the mixer '{info.name}' looks at held-out rows of each source"
    return [Problem("mixer_eval_dataset", what, way_out)]


def _resolved(draft: Draft, name: str, from_files: list[ComponentInfo]) -> ComponentSpec:
    assert draft.kind is not None
    a = draft.arguments
    sources = None if draft.theirs.get("tokenized_path") else draft.dataset_names or None
    return resolve(draft.kind, name, a.components_cfg_file, from_files, a.component, sources)


def _import(spec: ComponentSpec, known_broken: bool) -> None:
    """Imports a component that is not this project's: only that shows whether it can be, and is one.

    Raises:
        ConfigError: It cannot be imported, or does not keep the contract of its kind.
        ComponentError: It tried to end the process.
    """
    owner = registry.official(spec.kind).get(registry.split_name(spec.name)[1])
    packages = {registry.package_of(point) for point in registry.providers(spec.kind, spec.name)}
    if not known_broken and packages != {owner}:
        registry.find(spec.kind, spec.name)


def _plugins(files: Sequence[str]) -> tuple[list[Problem], list[ComponentInfo]]:
    """Imports the plugin files; where that fails, returns why, and the components that their text shows.

    What a file registers while it is imported is known to the registry afterwards.
    """
    problems: list[Problem] = []
    found: list[ComponentInfo] = []
    for path in files:
        try:
            found += scan_plugin_file(plugin_file(path))
        except ConfigError as error:
            problems.append(Problem("plugins", str(error)))
    if problems:
        return problems, found
    try:
        load_plugin_files(files)
    except ConfigError as error:
        own = [info for info in found if not registry.providers(info.kind, info.name)]
        return [Problem("plugins", str(error))], own
    return [], []


def _components_file(draft: Draft) -> list[Problem]:
    """Checks the user's components file where no component is there to be looked up in it."""
    file = draft.arguments.components_cfg_file
    if file is None:
        return []
    try:
        read_components(Path(file))
    except InvalidConfigError as error:
        return list(error.problems)
    except ConfigError as error:
        return [Problem("components_cfg_file", str(error))]
    return []


def _misplaced(draft: Draft) -> list[Problem]:
    if not draft.arguments.static_mix or draft.static_mix:
        return []
    what = f"is true, but train_type is {draft.arguments.train_type}"
    return [Problem("static_mix", what, "set train_type: dynamic_mix, or remove static_mix")]
