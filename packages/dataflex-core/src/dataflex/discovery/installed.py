"""Which packages are there, and in which version: read from metadata and source text, nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

from dataflex.core.entry_points import package_places
from dataflex.discovery.source_files import SourceNotFoundError, assigned, locate, module

_IN_ITS_SOURCE: Mapping[str, tuple[str, str]] = {"llamafactory": ("llamafactory.extras.env", "VERSION")}
"""Package -> the module and the name that hold its version, for those whose users run a checkout of the source."""


def has_package(package: str) -> bool:
    """Returns whether Python finds a top-level package of that name, installed or as a checkout on its path.

    A folder that holds no ``__init__.py`` is none, whatever its name.
    """
    try:
        locate(package)
    except SourceNotFoundError:
        return False
    return True


def version_of(package: str) -> str | None:
    """Returns the version of a package, or None where there is none of that name, or none that tells."""
    found = _in_metadata(package, package_places())
    home, name = _IN_ITS_SOURCE.get(package, ("", ""))
    return _text(home, name) if found is None and home else found


@lru_cache
def _in_metadata(package: str, places: tuple[tuple[str, int], ...]) -> str | None:
    """Returns the version that the installer wrote; read once for as long as no folder of packages changes."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _text(home: str, name: str) -> str | None:
    """Returns the text that a module assigns to a name."""
    try:
        found = [pair for statement in module(home).statements() if (pair := assigned(statement)) is not None]
    except SourceNotFoundError:
        return None
    for key, value in found:
        if key == name and isinstance(value, ast.Constant) and isinstance(value.value, str):
            return value.value
    return None
