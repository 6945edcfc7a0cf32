"""From ``component_name`` to a component and its parameters.

A preset is looked up in the user's components file and in those of the installed packages; the user's entry overrides
the packaged one of the same key, parameter by parameter as long as both mean the same component. A name without a
preset is the component itself at its defaults.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dataflex.config.components_file import Entry, packaged_components, user_components
from dataflex.config.load import with_secrets
from dataflex.config.spec import ComponentSpec
from dataflex.core import registry
from dataflex.core.catalog import ComponentInfo, lookup
from dataflex.core.errors import (
    ComponentConflictError,
    InvalidConfigError,
    Problem,
    UnknownComponentError,
    listed,
    nearest,
)
from dataflex.core.injected import INJECTED, OVERRIDABLE, wrong_override
from dataflex.core.kinds import Kind


def resolve(
    kind: Kind,
    component_name: str,
    components_cfg_file: str | Path | None = None,
    from_files: Iterable[ComponentInfo] = (),
) -> ComponentSpec:
    """Returns the component that ``component_name`` means, with its parameters, importing no component.

    Args:
        kind: The kind that the ``train_type`` runs.
        component_name: A preset, or a component.
        components_cfg_file: The user's presets.
        from_files: Components of plugin files that are not imported yet.

    Raises:
        ConfigError: The name is unknown or ambiguous, a components file is wrong, or parameters are unknown or missing.
    """
    entry = _entry(kind, component_name, user_components(components_cfg_file, kind))
    in_files = [info for info in from_files if info.kind == kind]
    local = {info.name: info for info in in_files}
    _refuse_conflicts(kind, entry.name, [info.package for info in in_files if info.name == entry.name])
    info = lookup(kind, entry.name) or local.get(entry.name)
    if info is None:
        raise UnknownComponentError(_unknown(kind, component_name, entry, components_cfg_file, local))
    problems = _parameter_problems(info, entry)
    if problems:
        raise InvalidConfigError(problems)
    params = with_secrets(entry.params, f"{entry.where}.params.")
    return ComponentSpec(kind, component_name, entry.name, params)


def presets(kind: Kind, components_cfg_file: str | Path | None = None) -> list[str]:
    """Returns every preset of that kind, the user's and the packages', sorted."""
    return sorted({*packaged_components(kind), *user_components(components_cfg_file, kind)})


def _entry(kind: Kind, key: str, user: Mapping[str, Entry]) -> Entry:
    packaged = packaged_components(kind).get(key, ())
    mine = user.get(key)
    if mine is not None:
        base: Mapping[str, Any] = next((entry.params for entry in packaged if entry.name == mine.name), {})
        return Entry(mine.name, {**base, **mine.params}, mine.where)
    if len(packaged) > 1:
        raise ComponentConflictError(
            f"component_name: the {kind.name} preset '{key}' is shipped by {listed(e.where for e in packaged)} "
            f"-> define '{key}' in a components_cfg_file of your own"
        )
    return packaged[0] if packaged else Entry(key, {}, f"component_name: {key}")


def _refuse_conflicts(kind: Kind, name: str, files: list[str]) -> None:
    points = [point for point in registry.provided(kind) if point.name == name]
    packages = {point.value: point.dist.name if point.dist is not None else point.value for point in points}
    providers = [*sorted(packages.values()), *files]
    if len(providers) > 1:
        way_out = f"rename the one in {files[-1]}" if files else "uninstall one of them"
        raise ComponentConflictError(f"{kind.name} '{name}' is provided by {' and by '.join(providers)} -> {way_out}")


def _unknown(kind: Kind, key: str, entry: Entry, file: str | Path | None, local: Mapping[str, ComponentInfo]) -> str:
    known = {*registry.names(kind), *local}
    if entry.name != key:  # the preset exists, what it names does not
        intro = f"{entry.where}.name: no {kind.name} named '{entry.name}'; known: {listed(known)}"
        allowed = known
    else:
        allowed = {*known, *presets(kind, file)}
        intro = f"no {kind.name} named '{key}'; known: {listed(allowed)}"
    wanted = registry.official(kind)
    if entry.name in wanted:
        return f"{intro} -> it is part of {wanted[entry.name]}: pip install {wanted[entry.name]}"
    return f"{intro} -> {nearest(entry.name, {*allowed, *wanted}) or 'see dataflex-cli list'}"


def _parameter_problems(info: ComponentInfo, entry: Entry) -> list[Problem]:
    problems = []
    subject = f"the {info.kind.name} '{info.name}'"
    for name, value in entry.params.items():
        where = f"{entry.where}.params.{name}"
        wrong = wrong_override(name, value)
        if name in INJECTED - OVERRIDABLE:
            problems.append(Problem(where, f"'{name}' is given to {subject} by dataflex", "remove it"))
        elif info.accepts is not None and name not in info.accepts:
            what = f"{subject} has no parameter '{name}'; allowed: {listed(info.accepts)}"
            problems.append(Problem(where, what, nearest(name, info.accepts) or "remove it"))
        elif wrong is not None:
            problems.append(Problem(where, wrong, "remove it for the run's own"))
    for name in info.required:
        if name not in entry.params:
            what = f"{subject} needs the parameter '{name}'"
            way_out = f"give it under {info.kind.section}: in a components_cfg_file"
            problems.append(Problem(f"{entry.where}.params", what, way_out))
    return problems
