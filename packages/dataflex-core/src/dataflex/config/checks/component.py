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
    return [*problems, *_without_target(draft, info)], spec, info


def _without_target(draft: Draft, info: ComponentInfo | None) -> list[Problem]:
    """Checks that there is an evaluation set for a component that aims at one."""
    if info is not None and "mixer_eval_dataset" in info.needs:
        return _without_held_out(draft, info)
    if info is None or "eval_dataset" not in info.needs:
        return []
    if names_in(draft.theirs.get("eval_dataset")) or draft.number("val_size", 0) or draft.theirs.get("tokenized_path"):
        return []
    what = f"is missing; the {info.kind.name} '{info.name}' aims at one"
    return [Problem("eval_dataset", what, "name one, or set val_size to hold rows out of the train dataset")]


def _without_held_out(draft: Draft, info: ComponentInfo) -> list[Problem]:
    """Checks that there are held-out rows of each source for a mixer that looks at them."""
    by_source = draft.number("val_size", 0) and not names_in(draft.theirs.get("eval_dataset"))
    if draft.arguments.mixer_eval_dataset or by_source:
        return []
    what = f"is missing; the mixer '{info.name}' looks at held-out rows of each source"
    way_out = "name one dataset per dataset, or set val_size, without eval_dataset, to hold rows out of each"
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
