"""Source files of classes that are not imported: finding them, parsing them, following their imports.

The file of ``package.module`` is found by asking the import system for the top-level package alone (which does not
import it) and walking the folders below; so nothing of a plugin runs, nothing can break, and a package that would load
torch costs the time to parse one file.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

HOPS = 5  # re-exports followed before giving up; ends a circle of imports


class SourceNotFoundError(LookupError):
    """The text cannot be found or read; the message says why."""


@dataclass(frozen=True)
class Module:
    """A parsed source file.

    Attributes:
        name: Dotted name; empty for a file outside of any package.
        path: The file.
        tree: Its syntax tree.
    """

    name: str
    path: Path
    tree: ast.Module

    def statements(self) -> Iterator[ast.stmt]:
        """Yields the top-level statements, those under ``if`` and ``try`` included."""
        queue = list(self.tree.body)
        while queue:
            node = queue.pop(0)
            yield node
            if isinstance(node, ast.If | ast.Try):
                queue[:0] = [*node.body, *node.orelse]

    def absolute(self, node: ast.ImportFrom) -> str:
        """Returns the dotted name of the module that a ``from ... import`` of this file means."""
        if not node.level:
            return node.module or ""
        package = self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]
        parts = package.split(".")
        return ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])


def package_folders(package: str) -> list[Path]:
    """Returns the folders of a top-level package; empty for a single-file module.

    Raises:
        SourceNotFoundError: It is not installed.
    """
    return [Path(folder) for folder in _spec(package)[1]]


def locate(module: str) -> Path:
    """Returns the source file of ``package.module``.

    Raises:
        SourceNotFoundError: There is no such package, or no Python source of that module in it.
    """
    top, *rest = module.split(".")
    origin, folders = _spec(top)
    stems = [Path(folder, *rest) for folder in folders]
    candidates = [p for stem in stems for p in (stem / "__init__.py", stem.with_suffix(".py"))]
    if not folders and not rest and origin:
        candidates = [Path(origin)]
    for path in candidates:
        if path.suffix == ".py" and path.is_file():
            return path
    raise SourceNotFoundError(f"no source file of module {module}")


def _spec(package: str) -> tuple[str | None, list[str]]:
    try:
        spec = find_spec(package)
    except (ImportError, ValueError) as error:  # ValueError: something without a spec stands in sys.modules
        raise SourceNotFoundError(f"package {package} cannot be located: {error}") from error
    if spec is None:
        raise SourceNotFoundError(f"package {package} is not installed")
    return spec.origin, list(spec.submodule_search_locations or [])


def parse(path: Path, name: str = "") -> Module:
    """Returns the parsed file.

    Raises:
        SourceNotFoundError: It cannot be read, or is not Python.
    """
    try:
        return Module(name, path, ast.parse(path.read_bytes(), filename=str(path)))
    except (OSError, SyntaxError, ValueError) as error:
        raise SourceNotFoundError(f"{path} cannot be read: {error}") from error


@cache
def module(name: str) -> Module:
    """Returns the parsed module of that dotted name; raises as :func:`locate` and :func:`parse` do."""
    return parse(locate(name), name)


def find_class(home: Module, name: str, hops: int = HOPS) -> tuple[Module, ast.ClassDef] | None:
    """Returns the class that ``name`` means in that module, or None where the text does not tell.

    ``from x import Name`` is followed into the other file.
    """
    for node in home.statements():
        if isinstance(node, ast.ClassDef) and node.name == name:
            return home, node
        if isinstance(node, ast.ImportFrom) and hops:
            alias = next((a for a in node.names if (a.asname or a.name) == name), None)
            if alias is not None:
                try:
                    return find_class(module(home.absolute(node)), alias.name, hops - 1)
                except SourceNotFoundError:
                    return None
    return None


def assigned(statement: ast.stmt) -> tuple[str, ast.expr] | None:
    """Returns ``(name, value)`` of a plain assignment to one name, else None."""
    target: ast.expr
    value: ast.expr | None
    if isinstance(statement, ast.AnnAssign):
        target, value = statement.target, statement.value
    elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target, value = statement.targets[0], statement.value
    else:
        return None
    return (target.id, value) if isinstance(target, ast.Name) and value is not None else None
