"""Plugin files: Python files named under ``plugins:`` in the YAML, for components and hooks that are not packaged.

``train`` and ``validate`` import them: only that shows what one raises. Their text is read first, which tells the names
that they register with file and line.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from dataflex.core.errors import BrokenPluginError, ConfigError, DataflexError, not_exiting
from dataflex.core.kinds import KINDS, Kind
from dataflex.core.registry import forget
from dataflex.discovery.catalog import ComponentInfo
from dataflex.discovery.describe import describe_node
from dataflex.discovery.source_files import Module

_WAY_OUT = "repair the file, or take it out of plugins:"
_DECORATORS = {f"register_{kind.name}": kind for kind in KINDS}


def plugin_file(path: str | Path) -> Path:
    """Returns the absolute path of a plugin file.

    Raises:
        ConfigError: It is missing or is not a ``.py`` file.
    """
    file = Path(os.path.expanduser(path)).resolve()
    if not file.is_file():
        way_out = "name it relative to the working directory or to the YAML's folder"
        raise ConfigError(f"plugin file {path} does not exist -> {way_out}")
    if file.suffix != ".py":
        raise ConfigError(f"plugin file {path} is not a .py file -> name one with @register_* classes or hooks")
    return file


def module_name(file: Path) -> str:
    """Returns the name a plugin file is imported under: its own, made unique by its folder."""
    return f"dataflex_plugin_{file.stem}_{hashlib.blake2b(str(file).encode(), digest_size=4).hexdigest()}"


def import_plugin_file(file: Path) -> ModuleType:
    """Runs the file as a module of its own name and returns it.

    Raises:
        BrokenPluginError: It raised; the message holds file and line.
        ComponentError: It tried to end the process.
    """
    name = module_name(file)
    spec = spec_from_file_location(name, file)
    assert spec is not None  # a .py file always has one
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as import does: pickle and dataclasses look it up there
    try:
        with redirect_stdout(sys.stderr):  # what a command prints is its own
            spec.loader.exec_module(module)
    except (DataflexError, KeyboardInterrupt):  # such as a name registered twice: it says all
        _forget(name)
        raise
    except Exception as error:  # a user's file may raise anything: name file and line, keep the cause
        _forget(name)
        raise BrokenPluginError(
            f"plugin file {file}{_line(error, file)}: {type(error).__name__}: {error} -> {_WAY_OUT}"
        ) from error
    except BaseException as error:
        _forget(name)
        with not_exiting(f"plugin file {file}{_line(error, file)}"):
            raise
    return module


def _forget(name: str) -> None:
    """Leaves no trace of a module that could not be imported to its end."""
    del sys.modules[name]
    forget(name)


def scan_plugin_file(file: Path) -> list[ComponentInfo]:
    """Returns the components that the text of a plugin file registers with a decorator, without running it.

    Raises:
        BrokenPluginError: The file is not valid Python.
    """
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
        compile(tree, str(file), "exec")  # finds what parsing does not, such as a return outside of a function
    except (SyntaxError, ValueError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise BrokenPluginError(f"plugin file {file}{where}: {type(error).__name__}: {error} -> {_WAY_OUT}") from error
    module = Module("", file, tree)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return [info for node in classes for info in _registered_by(module, node)]


def _registered_by(module: Module, node: ast.ClassDef) -> Iterator[ComponentInfo]:
    for call in node.decorator_list:
        if not isinstance(call, ast.Call) or len(call.args) != 1 or not isinstance(call.args[0], ast.Constant):
            continue
        kind = _decorator(call.func)
        if kind is not None:
            yield ComponentInfo.of(kind, str(call.args[0].value), str(module.path), "", describe_node(module, node))


def _decorator(node: ast.expr) -> Kind | None:
    if isinstance(node, ast.Name):
        return _DECORATORS.get(node.id)
    return _DECORATORS.get(node.attr) if isinstance(node, ast.Attribute) else None


def _line(error: BaseException, file: Path) -> str:
    if isinstance(error, SyntaxError):
        if not error.lineno:  # a NUL, or an encoding that nobody knows
            return ""
        inside = error.filename == str(file)
        return f", line {error.lineno}" if inside else f" (in {error.filename}, line {error.lineno})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f", line {lines[-1]}" if lines else ""
