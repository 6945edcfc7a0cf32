"""Where components come from: classes registered by a decorator, and classes that installed packages name.

A package names its components in its metadata (entry-point groups ``dataflex.selectors``, ``dataflex.mixers``,
``dataflex.orders``, ``dataflex.weighters``). A plain file named under ``plugins:`` in the YAML registers with the
decorators of this module. Nothing is imported here: :mod:`dataflex.discovery.component_classes` turns a name into a
class.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import EntryPoint
from importlib.resources import files
from typing import TypeVar

from dataflex.core.entry_points import entry_points
from dataflex.core.errors import ComponentConflictError, ConfigError
from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER, Kind

C = TypeVar("C", bound=type)

_registered: dict[tuple[str, str], type] = {}
_files: dict[str, str] = {}  # the file of each; inspect finds none once the module has left sys.modules


def register_selector(name: str) -> Callable[[C], C]:
    """Class decorator that makes a :class:`~dataflex.interfaces.selector.Selector` known as ``name``.

    Args:
        name: What ``component_name`` finds it by.

    Raises:
        ComponentConflictError: Another class has the name, or it is that of a component of this project.
    """
    return register(SELECTOR, name)


def register_mixer(name: str) -> Callable[[C], C]:
    """Class decorator that makes a :class:`~dataflex.interfaces.mixer.Mixer` known as ``name``.

    Args:
        name: What ``component_name`` finds it by.

    Raises:
        ComponentConflictError: Another class has the name, or it is that of a component of this project.
    """
    return register(MIXER, name)


def register_order(name: str) -> Callable[[C], C]:
    """Class decorator that makes an :class:`~dataflex.interfaces.order.Order` known as ``name``.

    Args:
        name: What ``component_name`` finds it by.

    Raises:
        ComponentConflictError: Another class has the name, or it is that of a component of this project.
    """
    return register(ORDER, name)


def register_weighter(name: str) -> Callable[[C], C]:
    """Class decorator that makes a :class:`~dataflex.interfaces.weighter.Weighter` known as ``name``.

    Args:
        name: What ``component_name`` finds it by.

    Raises:
        ComponentConflictError: Another class has the name, or it is that of a component of this project.
    """
    return register(WEIGHTER, name)


def register(kind: Kind, name: str) -> Callable[[C], C]:
    """Class decorator that makes a component of a kind known as ``name``.

    Args:
        kind: The kind.
        name: What ``component_name`` finds it by.

    Raises:
        ComponentConflictError: Another class has the name, or it is that of a component of this project.
    """

    def decorate(cls: C) -> C:
        known, owner = registered_as(kind, name), official(kind).get(name)
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
                f"{kind.name} '{name}': {where(cls)} would take the name of a component of {owner} -> {rename}"
            )
        raise ComponentConflictError(
            f"{kind.name} '{name}' is registered twice: by {' and by '.join(map(where, filter(None, [known, cls])))} "
            f"-> {rename}"
        )

    return decorate


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
    found = registered_as(kind, bare)
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


def registered_as(kind: Kind, name: str) -> type | None:
    """Returns the class that a decorator registered under that name, or None."""
    return _registered.get((kind.section, name))


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


def where(cls: type) -> str:
    """Returns a class and the file that registered it, for messages."""
    return f"{cls.__qualname__} in {_files.get(identity(cls)) or file_of(cls)}"
