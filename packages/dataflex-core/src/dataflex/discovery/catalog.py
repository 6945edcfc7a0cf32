"""The list of components, for people and for the checks: what is there, what it takes, where it comes from.

Listing reads metadata and source text only; no component is imported. What a plugin file has registered in this process
is listed as well, from the classes themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import Any

from dataflex.core import registry
from dataflex.core.kinds import KINDS, Kind
from dataflex.discovery.describe import Constructor, Description, describe, describe_class
from dataflex.discovery.source_files import SourceNotFoundError


@dataclass(frozen=True)
class ComponentInfo:
    """A component as ``dataflex-cli list`` shows it.

    Attributes:
        kind: Selector, mixer, order or weighter.
        name: What ``component_name`` finds it by.
        package: The distribution, or the file that registered it.
        version: Of the distribution; empty for a file.
        summary: First line of its docstring, or why it cannot be read.
        parameters: Parameters a user may set -> default. Objects that dataflex gives are not among them.
        required: Parameters a user must set.
        accepts: Every name a user may set (``parameters``, ``required``, and given plain values such as ``seed``); None
            where it may be anything.
        constants: Literals of the class body, such as ``replacement``.
        needs: Objects of the run that its constructor does not do without, such as ``eval_dataset``.
        takes_seed: Whether a ``seed`` among its parameters changes what it draws.
        constructors: Its constructors as text, for :mod:`dataflex.discovery.stated_checks`.
    """

    kind: Kind
    name: str
    package: str
    version: str
    summary: str
    parameters: dict[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    accepts: frozenset[str] | None = None
    constants: dict[str, Any] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    takes_seed: bool = True
    constructors: tuple[Constructor, ...] = field(default=(), compare=False, repr=False)

    @classmethod
    def of(cls, kind: Kind, name: str, package: str, version: str, description: Description) -> ComponentInfo:
        """Returns the entry for a description."""
        return cls(
            kind,
            name,
            package,
            version,
            description.summary,
            description.defaults,
            description.required,
            description.accepts,
            description.constants,
            description.needs,
            description.takes_seed,
            tuple(description.constructors),
        )


def components(kinds: Iterable[Kind] = KINDS) -> list[ComponentInfo]:
    """Returns every component of those kinds: installed ones, then those that files registered in this process."""
    found = []
    for kind in kinds:
        points = registry.provided(kind)
        found += [_installed(kind, point) for point in points]
        values = {point.value for point in points}
        for name, cls in registry.registered(kind):
            if f"{cls.__module__}:{cls.__qualname__}" not in values:
                where = registry.file_of(cls)
                found.append(ComponentInfo.of(kind, name, where, "", describe_class(cls)))
    return found


def lookup(kind: Kind, name: str) -> ComponentInfo | None:
    """Returns the component of that name, or None. Describes only it.

    Args:
        kind: The kind.
        name: The component, or ``package:name``.
    """
    points = registry.providers(kind, name)
    if points:
        return _installed(kind, points[0])
    for known, cls in registry.registered(kind):
        if known == name:
            return ComponentInfo.of(kind, name, registry.file_of(cls), "", describe_class(cls))
    return None


def _installed(kind: Kind, point: EntryPoint) -> ComponentInfo:
    package = registry.package_of(point) if point.dist is not None else point.module
    version = point.dist.version if point.dist is not None else ""
    try:
        return ComponentInfo.of(kind, point.name, package, version, describe(point.value))
    except SourceNotFoundError as error:
        return ComponentInfo(kind, point.name, package, version, f"(cannot be read: {error})")
