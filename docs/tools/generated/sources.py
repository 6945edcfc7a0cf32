"""The packages as griffe reads them from their text: nothing of them is imported, so no torch is loaded."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[3]


@cache
def modules() -> griffe.ModulesCollection:
    """Returns all modules of the four packages."""
    folders = sorted(ROOT.glob("packages/*/src"))
    loader = griffe.GriffeLoader(search_paths=list(map(str, folders)), allow_inspection=False)
    for init in sorted(ROOT.glob("packages/*/src/*/__init__.py")):
        loader.load(init.parent.name)
    loader.resolve_aliases(implicit=True)
    return loader.modules_collection


def exported(module: str) -> list[str]:
    """Returns the names in ``__all__`` of a module, with the module in front."""
    return [f"{module}.{name}" for name in modules()[module].exports or ()]


def functions(module: str) -> list[str]:
    """Returns the names of the public functions that a module defines, in the order of its text."""
    members = modules()[module].members
    return [name for name, found in members.items() if not found.is_alias and found.is_function and name[0] != "_"]


def class_of(path: str) -> griffe.Class:
    """Returns the class of ``module:Class``, also where the module has it from another one.

    Raises:
        TypeError: It is something else.
    """
    found = modules()[path.replace(":", ".")]
    target = found.final_target if found.is_alias else found
    if not isinstance(target, griffe.Class):
        raise TypeError(f"{path} is no class")
    return target
