"""From what ``selector=`` and its like are given to a component that the registry knows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataflex.config.axis_keys import COMPONENT, PARAMS, keys_of
from dataflex.config.checks.parsed_config import find_path
from dataflex.core import registry
from dataflex.core.errors import ConfigError, Problem, listed, nearest
from dataflex.core.kinds import Kind
from dataflex.discovery import component_classes
from dataflex.discovery.plugin_files import plugin_file, scan_plugin_file

NAME = "name"
"""Another word for ``component``, as in a components file."""


@dataclass(frozen=True)
class Choice:
    """A component as it was asked for.

    Attributes:
        name: Its name or preset; None where it cannot be told.
        params: Parameters that came with it.
        rest: What else a mapping says of it: ``every``, ``keep`` and the like.
        plugins: Files that register it.
        problems: What is wrong with it.
    """

    name: str | None
    params: Mapping[str, Any] | None = None
    rest: Mapping[str, Any] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    problems: list[Problem] = field(default_factory=list)


def choice(kind: Kind, given: Any, where: str) -> Choice:
    """Returns what the keyword of a kind was given: a name, a class, a plugin file, or a mapping with ``name``.

    A class that no package and no decorator names is registered, under its own name where that is free.

    Args:
        kind: The kind.
        given: What was given.
        where: The keyword, or the place in its list, for messages.
    """
    try:
        if isinstance(given, Path) or (isinstance(given, str) and given.endswith(".py")):
            return _of_file(kind, Path(given), where)
        if isinstance(given, str) and given.strip():
            return Choice(given)
        if isinstance(given, Mapping):
            return _of_mapping(kind, given, where)
        if inspect.isclass(given):
            return Choice(_of_class(kind, given))
    except ConfigError as error:
        return Choice(None, problems=[Problem(where, str(error))])
    what = (
        f"found {given!r:.80}, allowed: a name, a class, the path of a plugin file, or a mapping with name and params"
    )
    way_out = f"write {kind.name}='NAME'"
    if component_classes.is_component(kind, type(given)):
        way_out = f"give the class, {kind.name}={type(given).__name__}, and what its constructor takes in params"
    return Choice(None, problems=[Problem(where, what, way_out)])


def _of_file(kind: Kind, path: Path, where: str) -> Choice:
    file = find_path(str(path), Path.cwd())
    names = [info.name for info in scan_plugin_file(plugin_file(file)) if info.kind is kind]
    if len(names) == 1:
        return Choice(names[0], plugins=(str(file),))
    if not names:
        what = f"{path} registers no {kind.name}"
        way_out = f"decorate the class with @register_{kind.name}('NAME')"
    else:
        what = f"{path} registers {len(names)} {kind.section}: {listed(names)}"
        way_out = f"write {kind.name}='{names[0]}', plugins=['{path}'], say"
    return Choice(None, problems=[Problem(where, what, way_out)])


def _of_mapping(kind: Kind, given: Mapping[Any, Any], where: str) -> Choice:
    allowed = (NAME, *keys_of(kind))
    unknown = [key for key in given if key not in allowed]
    if unknown:
        hint = nearest(str(unknown[0]), allowed) or "parameters of the component stand in params"
        what = f"no such key; allowed: {listed(allowed)}"
        return Choice(None, problems=[Problem(f"{where}.{unknown[0]}", what, hint)])
    names = [given[key] for key in (NAME, COMPONENT) if given.get(key) is not None]
    if len(names) != 1 or isinstance(names[0], Mapping):
        what = "found no name of a component in the mapping" if len(names) != 2 else "found both name and component"
        return Choice(None, problems=[Problem(where, what, f"write {kind.name}={{'name': ..., 'params': ...}}")])
    named, params = choice(kind, names[0], where), given.get(PARAMS)
    rest = {str(key): value for key, value in given.items() if key not in (NAME, COMPONENT, PARAMS)}
    if params is not None and not isinstance(params, Mapping):
        what = f"found {params!r:.80}, allowed: a mapping from parameters to values"
        return Choice(None, None, rest, problems=[*named.problems, Problem(f"{where}.{PARAMS}", what)])
    return Choice(named.name, params, rest, named.plugins, named.problems)


def _of_class(kind: Kind, cls: type) -> str:
    """Returns the name under which the registry has a class, which it is given one for where it has none."""
    component_classes.check_contract(kind, cls.__name__, cls)
    known = [name for name, other in registry.registered(kind) if other is cls]
    known += [
        f"{registry.package_of(point)}:{point.name}"
        for point in registry.provided(kind)
        if point.value == f"{cls.__module__}:{cls.__qualname__}"
    ]
    if known:
        return known[0]
    taken = {*registry.names(kind), *registry.official(kind)}
    mine = [name for name, other in registry.registered(kind) if registry.identity(other) == registry.identity(cls)]
    name = mine[0] if mine else cls.__name__
    if name in taken and not mine:
        name = f"{cls.__module__}.{cls.__qualname__}"
    registry.register(kind, name)(cls)
    return name
