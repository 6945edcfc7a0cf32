"""Where components come from: classes registered by a decorator, and classes that installed packages name.

A package names its components in its metadata (entry-point groups ``dataflex.selectors``, ``dataflex.mixers``,
``dataflex.weighters``); looking a name up imports just that one class, so a broken package hurts nobody who does not
use it. A plain file named under ``plugins:`` in the YAML registers with the decorators of this module.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from typing import Any, TypeVar

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
from dataflex.core.kinds import MIXER, SELECTOR, WEIGHTER, Kind

C = TypeVar("C", bound=type)

_registered: dict[tuple[str, str], type] = {}


def register_selector(name: str) -> Callable[[C], C]:
    """Class decorator that makes a :class:`~dataflex.train.selector.base_selector.Selector` known as ``name``."""
    return _register(SELECTOR, name)


def register_mixer(name: str) -> Callable[[C], C]:
    """Class decorator that makes a :class:`~dataflex.train.mixer.base_mixer.Mixer` known as ``name``."""
    return _register(MIXER, name)


def register_weighter(name: str) -> Callable[[C], C]:
    """Class decorator that makes a :class:`~dataflex.train.weighter.base_weighter.Weighter` known as ``name``."""
    return _register(WEIGHTER, name)


def _register(kind: Kind, name: str) -> Callable[[C], C]:
    def decorate(cls: C) -> C:
        known = _registered.get((kind.section, name))
        if known is not None and _identity(known) != _identity(cls):
            raise ComponentConflictError(
                f"{kind.name} '{name}' is registered twice: by {_where(known)} and by {_where(cls)} "
                f"-> rename one of them in its @register_{kind.name}"
            )
        _registered[kind.section, name] = cls
        return cls

    return decorate


def find(kind: Kind, name: str) -> type:
    """Returns the component class of that kind and name, importing only it.

    Raises:
        UnknownComponentError: Nobody provides the name; the message holds the nearest one, or what to install.
        ComponentConflictError: More than one package or file provides it.
        BrokenPluginError: Its package is installed but the class cannot be imported.
        ComponentError: Its module tried to end the process when it was imported.
        WrongBaseClassError: It does not keep the contract of its kind.
    """
    points = [p for p in provided(kind) if p.name == name]
    registered = _registered.get((kind.section, name))
    if len({p.value for p in points}) > 1:
        raise ComponentConflictError(
            f"{kind.name} '{name}' is provided by {listed(_package(p) for p in points)} -> uninstall one of them"
        )
    if points and registered is not None and points[0].value != _identity(registered):
        raise ComponentConflictError(
            f"{kind.name} '{name}' is provided by the package {_package(points[0])} and by {_where(registered)} "
            f"-> rename the one in {_where(registered)}"
        )
    if not points and registered is None:
        raise UnknownComponentError(_unknown(kind, name))
    cls = registered if registered is not None else _load(kind, points[0])
    _check_contract(kind, name, cls)
    return cls


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
        with not_exiting(f"{kind.name} '{point.name}' of the package {_package(point)}, imported from {point.value},"):
            loaded: type = point.load()
    except ComponentError:
        raise
    except (
        Exception
    ) as error:  # whatever a third party's module does at import is its own fault: name it, keep the cause
        raise BrokenPluginError(
            f"{kind.name} '{point.name}' of the package {_package(point)} cannot be loaded from {point.value}: "
            f"{type(error).__name__}: {error} -> repair or reinstall it: pip install --force-reinstall "
            f"{_package(point)}"
        ) from error
    return loaded


def _check_contract(kind: Kind, name: str, cls: Any) -> None:
    module, _, attribute = kind.base.partition(":")
    base = getattr(import_module(module), attribute)
    if not inspect.isclass(cls) or not base.accepts(cls):
        shown = f"{cls.__module__}.{cls.__qualname__}" if inspect.isclass(cls) else repr(cls)
        raise WrongBaseClassError(
            f"{kind.name} '{name}' ({shown}) is not a {base.__name__}: {base.contract} -> derive it from "
            f"{module}.{attribute}"
        )


def _unknown(kind: Kind, name: str) -> str:
    message = f"no {kind.name} named '{name}'; known: {listed(names(kind))}"
    if name in official(kind):
        return f"{message} -> it is part of {official(kind)[name]}: pip install {official(kind)[name]}"
    hint = nearest(name, {*names(kind), *official(kind)})
    return f"{message} -> {hint or 'see dataflex-cli list'}"


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _identity(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _where(cls: type) -> str:
    return f"{cls.__qualname__} in {inspect.getsourcefile(cls) or cls.__module__}"
