"""Where components come from: classes registered by a decorator, and classes that installed packages name.

A package names its components in its metadata (entry-point groups ``dataflex.selectors``, ``dataflex.mixers``,
``dataflex.orders``, ``dataflex.weighters``); looking a name up imports just that one class, so a broken package hurts
nobody who does not use it. A plain file named under ``plugins:`` in the YAML registers with the decorators of this
module.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from typing import Any, TypeVar

from dataflex.core.errors import (
    BrokenPluginError,
    ComponentConflictError,
    ComponentError,
    ConfigError,
    UnknownComponentError,
    WrongBaseClassError,
    listed,
    nearest,
    not_exiting,
)
from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER, Kind

C = TypeVar("C", bound=type)

_registered: dict[tuple[str, str], type] = {}
_files: dict[str, str] = {}  # the file of each; inspect finds none once the module has left sys.modules


def register_selector(name: str) -> Callable[[C], C]:
    """Class decorator that makes a :class:`~dataflex.interfaces.selector.Selector` known as ``name``."""
    return register(SELECTOR, name)


def register_mixer(name: str) -> Callable[[C], C]:
    """Class decorator that makes a :class:`~dataflex.interfaces.mixer.Mixer` known as ``name``."""
    return register(MIXER, name)


def register_order(name: str) -> Callable[[C], C]:
    """Class decorator that makes an :class:`~dataflex.interfaces.order.Order` known as ``name``."""
    return register(ORDER, name)


def register_weighter(name: str) -> Callable[[C], C]:
    """Class decorator that makes a :class:`~dataflex.interfaces.weighter.Weighter` known as ``name``."""
    return register(WEIGHTER, name)


def register(kind: Kind, name: str) -> Callable[[C], C]:
    """Class decorator that makes a component of a kind known as ``name``."""

    def decorate(cls: C) -> C:
        known, owner = _registered.get((kind.section, name)), official(kind).get(name)
        foreign = owner is not None and cls.__module__.partition(".")[0] != owner.replace("-", "_")
        twice = known is not None and identity(known) != identity(cls)
        if not foreign and not twice:
            _registered[kind.section, name] = cls
            _files[identity(cls)] = file_of(cls)
            return cls
        packaged = {point.value for point in provided(kind) if point.name == name}
        if identity(cls) in packaged and (known is None or identity(known) in packaged):
            return cls  # a package's own: found by package:name
        rename = f"rename {'it' if foreign else 'one of them'} in its @register_{kind.name}"
        if foreign:
            raise ComponentConflictError(
                f"{kind.name} '{name}': {_where(cls)} would take the name of a component of {owner} -> {rename}"
            )
        raise ComponentConflictError(
            f"{kind.name} '{name}' is registered twice: by {' and by '.join(map(_where, filter(None, [known, cls])))} "
            f"-> {rename}"
        )

    return decorate


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
    found = None if package else _registered.get((kind.section, bare))
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
    points, found = providers(kind, name), _registered.get((kind.section, bare))
    if package:
        return
    values = {point.value for point in points}
    files = list(dict.fromkeys(files))  # one that registers it twice says so itself
    others = [*files] if found is None or identity(found) in values else [*files, _where(found)]
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


def forget(module: str) -> None:
    """Forgets what a module registered that could not be imported to its end."""
    for key in [key for key, cls in _registered.items() if cls.__module__ == module]:
        del _registered[key]


def split_name(name: str) -> tuple[str, str]:
    """Returns (package, component) of ``package:component``, the package as pip compares it; blank where none is.

    Raises:
        ConfigError: There is a colon, and no package before it.
    """
    package, colon, bare = name.rpartition(":")
    if colon and not package.strip():
        raise ConfigError(f"found '{name}', which names no package before the colon -> write {bare}, or package:{bare}")
    return re.sub(r"[-_.]+", "-", package.strip()).lower(), bare


def full_name(kind: Kind, name: str) -> str:
    """Returns ``package:name`` of what a name means: one text for all the ways in which it may be written.

    A name without a package is that of the package that alone provides it, else of the one that publishes it; that of a
    plugin file's component stays as it is.
    """
    package, bare = split_name(name)
    packages = {package_of(point) for point in providers(kind, bare)} if not package else {package}
    found = _registered.get((kind.section, bare))
    if not package and found is not None and identity(found) not in {p.value for p in providers(kind, bare)}:
        return bare
    if len(packages) > 1:
        packages = {official(kind)[bare]} if bare in official(kind) else set()
    return split_name(f"{packages.pop()}:")[0] + f":{bare}" if packages else bare


def providers(kind: Kind, name: str) -> list[EntryPoint]:
    """Returns the entry points that a name means: all of that name, or that of the package that it names."""
    package, bare = split_name(name)
    points = [point for point in provided(kind) if point.name == bare]
    return [point for point in points if not package or split_name(f"{package_of(point)}:")[0] == package]


def names(kind: Kind) -> list[str]:
    """Returns every known name of that kind, sorted. Imports nothing."""
    return sorted({p.name for p in provided(kind)} | {n for section, n in _registered if section == kind.section})


def registered(kind: Kind) -> Iterator[tuple[str, type]]:
    """Yields ``(name, class)`` of what the decorators registered."""
    yield from ((n, cls) for (section, n), cls in sorted(_registered.items()) if section == kind.section)


def provided(kind: Kind) -> list[EntryPoint]:
    """Returns the entry points of that kind, from metadata alone."""
    return sorted(entry_points(group=kind.group), key=lambda p: p.name)


@cache
def official(kind: Kind) -> dict[str, str]:
    """Returns name -> distribution of the components that this project publishes, installed or not."""
    table = json.loads(files("dataflex.core").joinpath("official.json").read_text(encoding="utf-8"))
    return {name: dist for dist, names_ in table[kind.section].items() for name in names_}


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
    return bool(_interface(kind).accepts(cls))


def check_contract(kind: Kind, name: str, cls: Any) -> None:
    """Refuses what is no component of a kind. Imports its interface.

    Raises:
        WrongBaseClassError: With what the contract asks for.
    """
    base, module = _interface(kind), kind.base.partition(":")[0]
    if not inspect.isclass(cls) or not base.accepts(cls):
        shown = f"{cls.__module__}.{cls.__qualname__}" if inspect.isclass(cls) else repr(cls)
        raise WrongBaseClassError(
            f"{kind.name} '{name}' ({shown}) is not a {base.__name__}: {base.contract} -> derive it from "
            f"{module}.{base.__name__}"
        )


def _interface(kind: Kind) -> Any:
    module, _, attribute = kind.base.partition(":")
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


def package_of(point: EntryPoint) -> str:
    """Returns the distribution that an entry point is of, as ``dataflex-cli list`` shows it."""
    return point.dist.name if point.dist is not None else point.value


def identity(cls: type) -> str:
    """Returns ``module:name`` of a class, which stays the same where its module, or a notebook's cell, is run again."""
    return f"{cls.__module__}:{cls.__qualname__}"


def file_of(cls: type) -> str:
    """Returns the file of a class; its module where it has none, as in a notebook."""
    try:
        return inspect.getsourcefile(cls) or cls.__module__
    except (OSError, TypeError):  # typed at a prompt, or its module is gone
        return cls.__module__


def _where(cls: type) -> str:
    return f"{cls.__qualname__} in {_files.get(identity(cls)) or file_of(cls)}"
