"""The marker `llamafactory`: who needs LLaMA-Factory says so, and is skipped where it is not installed.

Where it is installed, a test without the marker runs as if it were not: importing LLaMA-Factory fails the test, or the
module that does so at its top, and the message names the marker. Its sources may be read and its version asked for,
and what a test does without LLaMA-Factory is for the sessions that do not install it (`nox -s latest`).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

INSTALLED = find_spec("llamafactory") is not None
REASON = 'needs LLaMA-Factory: pip install "dataflex-core[llamafactory]"'
UNMARKED = (
    "{name} is imported by what does not carry the marker `llamafactory`, so this fails where LLaMA-Factory is not "
    "installed -> mark the test with @pytest.mark.llamafactory, or a module all of whose tests need it with "
    "pytestmark = pytest.mark.llamafactory"
)
FIXTURES = frozenset({"train"})
"""Fixtures that run LLaMA-Factory: a test that asks for one is marked by that."""


class _Refused:
    """A loader that loads nothing."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        pytest.fail(UNMARKED.format(name=module.__name__), pytrace=False)


class _Refusing:
    """Finds LLaMA-Factory, as who looks for its sources must, and has its import refused."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] != "llamafactory":
            return None
        found = PathFinder.find_spec(name, path, target)
        if found is not None:
            found.loader = _Refused()  # type: ignore[assignment]  # only what the import system calls
        return found


def _holds(module: ModuleType | None) -> bool:
    """Whether a module of ours was made with LLaMA-Factory at its top."""
    values = list(vars(module).values()) if module is not None else []
    return any(isinstance(value, ModuleType) and value.__name__.startswith("llamafactory.") for value in values)


@contextmanager
def refused() -> Iterator[None]:
    """Refuses to import LLaMA-Factory, also where an earlier test has imported it, and our modules that do."""
    hidden = {
        name: module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == "llamafactory" or (name.startswith("dataflex.integrations.") and _holds(module))
    }
    for name in hidden:
        del sys.modules[name]
    sys.meta_path.insert(0, _Refusing)  # type: ignore[arg-type]  # it has all that is called
    try:
        yield
    finally:
        sys.meta_path.remove(_Refusing)  # type: ignore[arg-type]
        sys.modules.update(hidden)


def whole_module(path: Path) -> bool:
    """Returns whether a module of tests is marked as a whole; read from its text, as it may import LLaMA-Factory."""
    return any(
        isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "pytestmark"
        and "pytest.mark.llamafactory" in ast.unparse(node.value)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
    )


class _Skipped(pytest.Module):
    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        pytest.skip(REASON, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Leaves a marked module unread where LLaMA-Factory is missing: its own imports may need it."""
    if INSTALLED or not whole_module(module_path):
        return None
    return _Skipped.from_parent(parent, path=module_path)  # type: ignore[no-any-return]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Has a module without the marker read without LLaMA-Factory."""
    if not isinstance(collector, pytest.Module) or whole_module(collector.path):
        return (yield)
    with refused():
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks the tests that ask for a fixture that needs LLaMA-Factory; skips the marked where it is missing."""
    if FIXTURES & set(getattr(item, "fixturenames", ())):
        item.add_marker(pytest.mark.llamafactory)
    if not INSTALLED and item.get_closest_marker("llamafactory") is not None:
        item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Runs a test without the marker, and its fixtures, without LLaMA-Factory."""
    if item.get_closest_marker("llamafactory") is not None:
        return (yield)
    with refused():
        return (yield)
