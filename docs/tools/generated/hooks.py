"""Every hook: when it is called, with which arguments."""

from __future__ import annotations

import inspect

from dataflex.core import hookspecs

TEXT = """# Hooks

A hook is a function with one of these names, marked with `@hookimpl`. [Plugins](../plugins.md#hooks) says where such a
function stands and how it is found. It may take fewer arguments than are listed here. What it raises ends the run.

"""


def names() -> list[str]:
    """Returns every hook, in the order of the code."""
    return [
        name for name, found in vars(hookspecs).items() if name.startswith("dataflex_") and inspect.isfunction(found)
    ]


def page() -> str:
    """Returns the page: the signatures and docstrings are filled in by mkdocstrings."""
    directives = [f"::: dataflex.core.hookspecs.{name}\n" for name in [*names(), "Command"]]
    return TEXT + "\n".join(directives)
