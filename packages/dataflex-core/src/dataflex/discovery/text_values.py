"""Values of the names in source files that must not be imported: each is evaluated from its text when it is asked for.

A constant, a function or a class of a module that would load torch can be had alone, as long as what it uses can be
had too. What a file imports from a light module, one that loads nothing heavy, is the real thing.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from types import CodeType
from typing import Any

from dataflex.discovery.source_files import Module, SourceNotFoundError, assigned, module

_LIGHT = sys.stdlib_module_names | {"numpy", "pyarrow", "yaml", "pluggy", "packaging"}
_DECORATORS = frozenset({"dataclass", "cache", "lru_cache"})  # others may register something somewhere
_ANNOTATIONS_STAY_TEXT = __future__.annotations.compiler_flag


class TextNames(dict[str, Any]):
    """The global names of a module, for ``eval``; a name that cannot be had without importing it is missing.

    Args:
        home: The module.
    """

    def __init__(self, home: Module) -> None:
        super().__init__(__name__=__name__, __builtins__=builtins)  # dataclasses look their module up by its name
        self._home = home
        self._open: set[str] = set()  # names that are being evaluated: ends a circle

    def __missing__(self, name: str) -> Any:
        statement = None if name in self._open else next(
            (each for each in statements(self._home) if name in _defined_by(each)), None
        )  # fmt: skip
        if statement is None:
            raise KeyError(name)
        self._open.add(name)
        try:
            self[name] = self._value(statement, name)
        finally:
            self._open.discard(name)
        return self[name]

    def _value(self, statement: ast.stmt, name: str) -> Any:
        match statement:
            case ast.FunctionDef() | ast.ClassDef():
                if any(_called(decorator) not in _DECORATORS for decorator in statement.decorator_list):
                    raise KeyError(name)
                self._run(statement)
                return dict.__getitem__(self, name)
            case ast.ImportFrom():
                alias = next(each for each in statement.names if (each.asname or each.name) == name)
                return _imported(self._home.absolute(statement), alias.name)
            case ast.Import():
                alias = next(each for each in statement.names if (each.asname or each.name) == name)
                if not is_light(alias.name):
                    raise KeyError(name)
                return import_module(alias.name)
        pair = assigned(statement)
        assert pair is not None
        return evaluated(pair[1], self)

    def _run(self, statement: ast.stmt) -> None:
        tree = ast.Module([statement], [])
        exec(compile(tree, str(self._home.path), "exec", _ANNOTATIONS_STAY_TEXT, True), self)  # see above


def evaluated(expression: ast.expr, names: dict[str, Any]) -> Any:
    """Returns the value of an expression; raises what it raises, and NameError where a name cannot be had."""
    return eval(_compiled(expression), names)  # the run would evaluate it too


@cache
def _compiled(expression: ast.expr) -> CodeType:
    code: CodeType = compile(ast.Expression(expression), "<text>", "eval", _ANNOTATIONS_STAY_TEXT, True)
    return code


@cache
def text_names(home: Module) -> TextNames:
    """Returns the names of a module."""
    return TextNames(home)


@cache
def is_light(name: str) -> bool:
    """Returns whether importing a module loads nothing but the standard library and a few small packages."""
    waiting, seen = [name], set()
    while waiting:
        each = waiting.pop()
        if each in seen or each.partition(".")[0] in _LIGHT:
            continue
        seen.add(each)
        try:
            waiting += _imports(module(each))
        except SourceNotFoundError:
            return False
        waiting += [parent for parent in (each.rpartition(".")[0],) if parent]
    return True


def statements(home: Module) -> Iterator[ast.stmt]:
    """Yields the top-level statements that an import runs: not those for type checkers."""
    queue = list(home.tree.body)
    while queue:
        node = queue.pop(0)
        yield node
        if isinstance(node, ast.If):
            queue[:0] = node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            queue[:0] = [*node.body, *node.orelse]


def _imports(home: Module) -> Iterator[str]:
    for node in statements(home):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            base = home.absolute(node)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names if _is_module(f"{base}.{alias.name}"))


def _is_module(name: str) -> bool:
    if name.partition(".")[0] in _LIGHT:
        return False
    try:
        module(name)
    except SourceNotFoundError:
        return False
    return True


def _imported(source: str, name: str) -> Any:
    if is_light(source):
        found = vars(import_module(source))
        return found[name] if name in found else import_module(f"{source}.{name}")
    try:
        return text_names(module(source))[name]
    except SourceNotFoundError as error:
        raise KeyError(name) from error


def _defined_by(statement: ast.stmt) -> set[str]:
    match statement:
        case ast.FunctionDef() | ast.ClassDef():
            return {statement.name}
        case ast.Import() | ast.ImportFrom():
            return {alias.asname or alias.name for alias in statement.names}
    pair = assigned(statement)
    return {pair[0]} if pair is not None else set()


def _called(node: ast.expr) -> str:
    node = node.func if isinstance(node, ast.Call) else node
    return node.id if isinstance(node, ast.Name) else ""
