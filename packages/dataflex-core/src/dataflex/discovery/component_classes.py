"""From the name of a component to its class: found, imported, and held against the contract of its kind.

Looking a name up imports just that one class, so a broken package hurts nobody who does not use it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint
from typing import Any

from dataflex.core.errors import (
    BrokenPluginError,
    ComponentConflictError,
    ComponentError,
    UnknownComponentError,
    WrongBaseClassError,
    listed,
    nearest,
    not_exiting,
)
from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER, Kind
from dataflex.core.registry import (
    identity,
    names,
    official,
    package_of,
    provided,
    providers,
    registered_as,
    split_name,
    where,
)

INTERFACES: Mapping[Kind, str] = {
    SELECTOR: "dataflex.interfaces.selector:Selector",
    MIXER: "dataflex.interfaces.mixer:Mixer",
    ORDER: "dataflex.interfaces.order:Order",
    WEIGHTER: "dataflex.interfaces.weighter:Weighter",
}
"""Kind -> ``module:Class`` of its base class."""


def find(kind: Kind, name: str) -> type:
    """Returns the component class of that kind and name, importing only it.

    Args:
        kind: The kind.
        name: The component; ``package:name`` chooses where several packages provide it.

    Raises:
        UnknownComponentError: Nobody provides the name; the message holds the nearest one, or what to install.
        ComponentConflictError: More than one package or file provides it.
        BrokenPluginError: Its package is installed but the class cannot be imported.
        ComponentError: Its module tried to end the process when it was imported.
        WrongBaseClassError: It does not keep the contract of its kind.
    """
    package, bare = split_name(name)
    refuse_conflicts(kind, name)
    points = providers(kind, name)
    found = None if package else registered_as(kind, bare)
    if not points and found is None:
        raise UnknownComponentError(_unknown(kind, name))
    cls = found if found is not None else _load(kind, points[0])
    check_contract(kind, name, cls)
    return cls


def refuse_conflicts(kind: Kind, name: str, files: Sequence[str] = ()) -> None:
    """Refuses a name that several provide, or that is not its owner's; ``package:name`` has said which is meant.

    Args:
        kind: The kind.
        name: The component.
        files: Files that register it and are not imported yet.

    Raises:
        ComponentConflictError: Who provides it, and what to write.
    """
    package, bare = split_name(name)
    points, found = providers(kind, name), registered_as(kind, bare)
    if package:
        return
    values = {point.value for point in points}
    files = list(dict.fromkeys(files))  # one that registers it twice says so itself
    others = [*files] if found is None or identity(found) in values else [*files, where(found)]
    packages = sorted({package_of(point) for point in points})
    choose = " or ".join(f"component_name: {each}:{bare}" for each in packages)
    if len(values) + len(others) > 1:
        rename = [f"rename the one in {others[-1]}"] if others else []
        say = [f"write {choose} (in a components file, name: {packages[0]}:{bare})"] if packages else []
        who = " and by ".join([*(f"the package {each}" for each in packages), *others])
        raise ComponentConflictError(f"{kind.name} '{name}' is provided by {who} -> {', or '.join([*rename, *say])}")
    owner = official(kind).get(bare)
    if points and owner is not None and split_name(f"{packages[0]}:")[0] != owner:
        raise ComponentConflictError(
            f"{kind.name} '{name}' is provided by the package {packages[0]}, and it is the name of a component of "
            f"{owner} -> write {choose}, or pip install {owner}"
        )


def _load(kind: Kind, point: EntryPoint) -> type:
    try:
        with not_exiting(
            f"{kind.name} '{point.name}' of the package {package_of(point)}, imported from {point.value},"
        ):
            loaded: type = point.load()
    except ComponentError:
        raise
    except Exception as error:  # whatever a third party's module does at import is its own fault
        raise BrokenPluginError(
            f"{kind.name} '{point.name}' of the package {package_of(point)} cannot be loaded from {point.value}: "
            f"{type(error).__name__}: {error} -> repair or reinstall it: pip install --force-reinstall "
            f"{package_of(point)}"
        ) from error
    return loaded


def is_component(kind: Kind, cls: type) -> bool:
    """Returns whether a class keeps the contract of a kind. Imports its interface."""
    return bool(interface(kind).accepts(cls))


def check_contract(kind: Kind, name: str, cls: Any) -> None:
    """Refuses what is no component of a kind. Imports its interface.

    Raises:
        WrongBaseClassError: With what the contract asks for.
    """
    base, module = interface(kind), INTERFACES[kind].partition(":")[0]
    if not inspect.isclass(cls) or not base.accepts(cls):
        shown = f"{cls.__module__}.{cls.__qualname__}" if inspect.isclass(cls) else repr(cls)
        raise WrongBaseClassError(
            f"{kind.name} '{name}' ({shown}) is not a {base.__name__}: {base.contract} -> derive it from "
            f"{module}.{base.__name__}"
        )


def interface(kind: Kind) -> Any:
    """Returns the base class of a kind. Imports its module."""
    module, _, attribute = INTERFACES[kind].partition(":")
    return vars(import_module(module))[attribute]


def _unknown(kind: Kind, name: str) -> str:
    message = f"no {kind.name} named '{name}'; known: {listed(names(kind))}"
    package, bare = split_name(name)
    if package and (others := [package_of(point) for point in provided(kind) if point.name == bare]):
        return f"{message} -> '{bare}' is provided by {listed(others)}: write {sorted(others)[0]}:{bare}"
    if name in official(kind):
        return f"{message} -> it is part of {official(kind)[name]}: pip install {official(kind)[name]}"
    hint = nearest(name, {*names(kind), *official(kind)})
    return f"{message} -> {hint or 'see dataflex-cli list'}"
