"""From ``component_name`` to a component and its parameters.

A preset is looked up in the user's components file and in those of the installed packages; the user's entry overrides
the packaged one of the same key, parameter by parameter as long as both mean the same component. A name without a
preset is the component itself at its defaults. What the run gives under ``component:`` wins over both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dataflex.config.component_parameters import name_problems, range_problems
from dataflex.config.load import with_secrets
from dataflex.config.moved.moved_entries import read_entry
from dataflex.config.moved.moved_parameters import THERE, RunKeys, not_here_yet
from dataflex.config.presets import Entry, packaged_components, user_components
from dataflex.config.spec import ComponentSpec
from dataflex.config.variables import unescaped, variable_problems
from dataflex.core import registry
from dataflex.core.errors import (
    ComponentConflictError,
    InvalidConfigError,
    Problem,
    UnknownComponentError,
    listed,
    nearest,
)
from dataflex.core.kinds import Kind
from dataflex.discovery import component_classes
from dataflex.discovery.catalog import ComponentInfo, lookup
from dataflex.utils.logging import logger
from dataflex.utils.secret_values import remember, revealed


@dataclass(frozen=True)
class Place:
    """Where a component stands in the file of a run, for messages.

    Attributes:
        name: The key that names it.
        params: The key of its parameters.
    """

    name: str = "component_name"
    params: str = "component"


SHORT_FORM = Place()
ALONE = RunKeys()
"""Of a component that is looked up beside no run."""


def resolve(
    kind: Kind,
    component_name: str,
    components_cfg_file: str | Path | None = None,
    from_files: Iterable[ComponentInfo] = (),
    overrides: Mapping[str, Any] | None = None,
    sources: Sequence[str] | None = None,
    place: Place = SHORT_FORM,
    run: RunKeys = ALONE,
) -> ComponentSpec:
    """Returns the component that ``component_name`` means, with its parameters, importing no component.

    Args:
        kind: The kind that the ``train_type`` runs.
        component_name: A preset, or a component; ``package:name`` where several packages provide the name.
        components_cfg_file: The user's presets.
        from_files: Components of plugin files that are not imported.
        overrides: Parameters that win over those of the preset: ``component:`` or ``params:`` of the run.
        sources: The names of the run's sources, where they are known.
        place: Where the run says so.
        run: What else it says, beside which a preset of OpenDCAI/DataFlex is read.

    Raises:
        ConfigError: The name is unknown or ambiguous, a components file is wrong, or parameters are unknown, missing or
            out of their range.
    """
    user = user_components(components_cfg_file, kind)
    entry = _entry(kind, component_name, user, place, run, overrides or {})
    if entry.refused:
        raise InvalidConfigError(entry.refused)
    for note in entry.notes:
        logger.warning(note)
    local = {info.name: info for info in from_files if info.kind == kind}
    component_classes.refuse_conflicts(kind, entry.name, [i.package for i in local.values() if i.name == entry.name])
    info = lookup(kind, entry.name) or local.get(entry.name)
    if info is None and (nearest_here := not_here_yet(kind.section, entry.name)):
        what = f"the {kind.name} '{entry.name}' of {THERE} is not here yet"
        raise InvalidConfigError([Problem(place.name, what, nearest_here)])
    if info is None:
        raise UnknownComponentError(_unknown(kind, component_name, entry, components_cfg_file, local))
    written = component_name in user  # what the packages ship is no place where the user could change a thing
    given = {name: (entry.place(name) if written else f"{place.params}.{name}", v) for name, v in entry.params.items()}
    given |= {name: (f"{place.params}.{name}", unescaped(value)) for name, value in (overrides or {}).items()}
    problems = [*variable_problems(overrides, place.params), *name_problems(info, given)]
    problems += _missing(info, f"{entry.where}.params" if written else place.params, given, place)
    params = {name: value for name, (_, value) in given.items()}
    found, missing = revealed(params)
    if not missing:
        remember(found)
        looked = {name: (where, found[name]) for name, (where, _) in given.items()}
        problems += range_problems(info, looked, sources, place.params)
    if problems:
        raise InvalidConfigError(problems)
    params = with_secrets(params, f"{entry.where}.params.")
    return ComponentSpec(kind, component_name, entry.name, params, entry.by, entry.over)


def presets(kind: Kind, components_cfg_file: str | Path | None = None) -> list[str]:
    """Returns every preset of that kind, the user's and the packages', sorted."""
    return sorted({*packaged_components(kind), *user_components(components_cfg_file, kind)})


def _entry(
    kind: Kind, key: str, user: Mapping[str, Entry], place: Place, run: RunKeys, overridden: Iterable[str]
) -> Entry:
    package, bare = registry.split_name(key)
    packaged = [entry for entry in packaged_components(kind).get(bare, ()) if not package or _of(entry, package)]
    mine = user.get(key)
    if mine is not None:
        mine = read_entry(kind, mine, run, overridden)
        package, bare = registry.split_name(mine.name)
        same = [entry for entry in packaged if entry.name == bare and (not package or _of(entry, package))]
        under = same[0] if same else Entry(mine.name)
        by, over = mine.by or under.by, mine.over or under.over
        return replace(mine, params={**under.params, **mine.params}, by=by, over=over)
    if len(packaged) > 1:
        choose = " or ".join(f"{place.name}: {entry.package}:{bare}" for entry in packaged)
        raise ComponentConflictError(
            f"{place.name}: the {kind.name} preset '{key}' is shipped by {listed(e.where for e in packaged)} "
            f"-> write {choose}, or define '{key}' in a components_cfg_file of your own"
        )
    if not packaged:
        return Entry(key, {}, f"{place.name}: {key}")
    entry = packaged[0]
    qualified = f"{entry.package}:{entry.name}"
    return replace(entry, name=qualified) if package and registry.providers(kind, qualified) else entry


def _of(entry: Entry, package: str) -> bool:
    return registry.split_name(f"{entry.package}:")[0] == package


def _unknown(kind: Kind, key: str, entry: Entry, file: str | Path | None, local: Mapping[str, ComponentInfo]) -> str:
    known = {*registry.names(kind), *local}
    if key in user_components(file, kind):  # the preset exists, what it names does not
        intro = f"{entry.where}.name: no {kind.name} named '{entry.name}'; known: {listed(known)}"
        allowed = known
        otherwise = f"give the entry the name: of one of them, or the file that registers '{entry.name}' under plugins:"
    else:
        allowed = {*known, *presets(kind, file)}
        intro = f"no {kind.name} named '{key}'; known: {listed(allowed)}"
        otherwise = "see dataflex-cli list"
    wanted = registry.official(kind)
    package, bare = registry.split_name(entry.name)
    others = sorted(registry.package_of(point) for point in registry.providers(kind, bare))
    if package and others:
        return f"{intro} -> '{bare}' is provided by {listed(others)}: write {others[0]}:{bare}"
    if entry.name in wanted:
        return f"{intro} -> it is part of {wanted[entry.name]}: pip install {wanted[entry.name]}"
    return f"{intro} -> {nearest(entry.name, {*allowed, *wanted}) or otherwise}"


def _missing(info: ComponentInfo, where: str, given: Mapping[str, Any], place: Place) -> list[Problem]:
    return [
        Problem(
            where,
            f"the {info.kind.name} '{info.name}' needs the parameter '{name}'",
            f"write {place.params}: {{{name}: ...}}, or give it under {info.kind.section}: in a components_cfg_file",
        )
        for name in info.required
        if name not in given
    ]
