"""Runs this project where nothing can be imported but what a package declares, in a process of its own.

    python tests/declared.py modules      imports every module of the four packages, and prints those that fail
    python tests/declared.py commands     runs dataflex-cli with the arguments in each line of stdin (a JSON list), and
                                          prints for each a JSON list: exit code, stdout, stderr, seconds, and whether
                                          torch or transformers was imported

What is declared comes from the pyproject.toml of this tree, and what that needs in turn from the installed metadata.
Everything else that is installed is hidden, from imports and from metadata alike, as if it were not there. An
environment that really holds nothing else is made by `nox -s declared`.
"""

from __future__ import annotations

import io
import json
import re
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module, metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
NAMES = ("dataflex-core", "dataflex-weighters", "dataflex-selectors", "dataflex-mixers")
"""The packages, those that declare least first: what is imported stays imported."""
ADAPTERS = "dataflex.integrations"
"""The one package whose modules may import LLaMA-Factory."""
FIXTURES = "dataflex.testing.pytest_fixtures"
"""The one module that may import pytest, which finds it by itself."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(package: str) -> list[str]:
    """Returns the requirements of a package of this tree, without its extras."""
    text = (ROOT / "packages" / package / "pyproject.toml").read_text(encoding="utf-8")
    found: list[str] = tomllib.loads(text)["project"]["dependencies"]
    return found


def closure(packages: Iterable[str]) -> set[str]:
    """Returns the distributions that packages of this tree need, themselves included."""
    found: set[str] = set()
    waiting = [Requirement(name) for name in packages]
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        name = normal(wanted.name)
        found.add(name)
        for extra in {"", *wanted.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            needs = map(Requirement, declared(name) if name in NAMES else _requires(name))
            waiting += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return found


def _requires(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:  # for another platform
        return []


class Hiding:
    """A finder of modules and of metadata that says nothing of what is not declared."""

    def __init__(self, finder: Any, hidden: set[str], kept: set[str]) -> None:
        self._finder, self._hidden, self._kept = finder, hidden, kept

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] in self._hidden:
            return None
        found: ModuleSpec | None = self._finder.find_spec(name, path, target)
        return found

    def find_distributions(self, context: Any) -> Iterator[metadata.Distribution]:
        find = getattr(self._finder, "find_distributions", None)
        for found in find(context) if find else ():
            if normal(found.name) in self._kept:
                yield found


FINDERS = list(sys.meta_path)
OWNERS = metadata.packages_distributions()


def hide(packages: Iterable[str]) -> set[str]:
    """Hides what those packages do not need. Returns the top-level names that are hidden."""
    kept = closure(packages)
    hidden = {top for top, owners in OWNERS.items() if kept.isdisjoint(map(normal, owners))}
    sys.meta_path[:] = [Hiding(finder, hidden, kept) for finder in FINDERS]  # type: ignore[misc]
    return hidden


def modules(package: str) -> Iterator[str]:
    """Yields the modules of a package that need no LLaMA-Factory."""
    source = ROOT / "packages" / package / "src"
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if parts[-1] != "__main__" and not f"{name}.".startswith(f"{ADAPTERS}.") and name != FIXTURES:
            yield name


def import_all() -> int:
    """Imports every module, each with what its package and core declare. Returns how many cannot be imported."""
    failed = 0
    for package in NAMES:
        hide({"dataflex-core", package})
        for name in modules(package):
            try:
                import_module(name)
            except ImportError as error:
                failed += 1
                print(f"{name}: {error}")
        print(f"{package}: {len(list(modules(package)))} modules")
    return failed


def run_commands() -> None:
    """Runs the command lines of stdin, one after the other."""
    hide(NAMES)
    from dataflex.cli.main import run

    for line in sys.stdin:
        out, err, begin = io.StringIO(), io.StringIO(), time.perf_counter()
        with redirect_stdout(out), redirect_stderr(err):
            code = run(json.loads(line))
        heavy = sorted({"torch", "transformers"} & set(sys.modules))
        print(json.dumps([code, out.getvalue(), err.getvalue(), time.perf_counter() - begin, heavy]))


if __name__ == "__main__":
    if sys.argv[1:] == ["commands"]:
        run_commands()
    else:
        sys.exit(bool(import_all()))
