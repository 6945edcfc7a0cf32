"""The layers of core: imports run down the list, never up, never in a circle. The source is read, not imported.

Counted as an import is whatever names another module of core: statements, also those in functions and under
``TYPE_CHECKING``, and texts such as ``"dataflex.interfaces.mixer:Mixer"`` that code imports later. Each of these has
once hidden a circle.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest

PACKAGES = Path(__file__).parents[2] / "packages"
CORE = PACKAGES / "dataflex-core" / "src"
LAYERS = (
    ("dataflex", "__main__"),  # the package itself, which names the door for programs
    ("cli",),
    ("workspace", "launch"),
    ("testing",),  # small runs of a component, made as a user makes them
    ("api",),
    ("experiments",),  # several runs compared
    ("report", "forecast"),  # what folders of runs say; what a run will take
    ("integrations",),  # the only room that knows LLaMA-Factory
    ("train",),  # the documented import paths: re-exports of what is below
    ("trainer",),
    ("planning", "objective"),  # which rows, in which order; how much each token counts
    ("upstream",),
    ("scoring",),
    ("run", "model"),
    ("rows",),
    ("config",),
    ("discovery",),
    ("interfaces",),
    ("core",),
    ("utils",),
)
"""Rooms from the top to the bottom. Those of one line stand side by side and never import each other."""

DEPTH = {room: depth for depth, rooms in enumerate(LAYERS) for room in rooms}
IMPORT_TEXT = re.compile(r"dataflex(\.\w+)+(:\w+)?")
LINES, FUNCTION_LINES, MEDIAN_LINES = 400, 60, 120


@dataclass(frozen=True)
class Import:
    """One module of core names another."""

    by: str
    of: str
    line: int

    def __str__(self) -> str:
        return f"{self.by}, line {self.line}: {self.of}"


def dotted(path: Path, root: Path) -> str:
    """Returns the name that a file is imported by."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def files(root: Path = CORE) -> dict[str, Path]:
    """Returns module -> file."""
    return {dotted(path, root): path for path in sorted(root.rglob("*.py"))}


def room(module: str) -> str:
    """Returns the room of a module: the name below ``dataflex``."""
    return module.split(".")[1] if "." in module else module


def named(node: ast.AST, module: str) -> list[str]:
    """Returns what a node of a module's text names, as dotted names that begin with ``dataflex``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert not node.level, f"{module}, line {node.lineno}: a relative import -> write the whole path"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and IMPORT_TEXT.fullmatch(node.value):
        return [node.value.replace(":", ".")]
    return []


def imports_of(module: str, text: str, known: frozenset[str]) -> Iterator[Import]:
    """Yields the imports in a module's text, of ``known`` modules."""
    for node in ast.walk(ast.parse(text)):
        for name in named(node, module):
            found = name
            while found not in known and "." in found:  # a class or function of a module
                found = found.rpartition(".")[0]
            is_text = isinstance(node, ast.Constant)
            if found in known and found != module and not (is_text and found == "dataflex"):
                yield Import(module, found, node.lineno)


@cache
def imports() -> tuple[Import, ...]:
    known = frozenset(files())
    return tuple(i for module, path in files().items() for i in imports_of(module, path.read_text("utf-8"), known))


def wrong_way(found: Import) -> str:
    """Returns what is wrong with an import across rooms; blank where it runs down."""
    by, of = room(found.by), room(found.of)
    if by == of or DEPTH[by] < DEPTH[of]:
        return ""
    way = "beside" if DEPTH[by] == DEPTH[of] else "above"
    return f"{found} ({of} stands {way} {by})"


def circle(among: dict[str, dict[str, int]]) -> list[Import]:
    """Returns one circle of module -> imported module -> line, as its imports; none where there is none."""
    done: set[str] = set()
    for start in among:
        path: list[str] = []
        todo = [(start, iter(among.get(start, {})))] if start not in done else []
        while todo:
            module, rest = todo[-1]
            if not path or path[-1] != module:
                path.append(module)
            following = next((each for each in rest if each not in done), None)
            if following is None:
                done.add(module)
                path.pop()
                todo.pop()
            elif following in path:
                ring = [*path[path.index(following) :], following]
                return [Import(a, b, among[a][b]) for a, b in pairwise(ring)]
            else:
                todo.append((following, iter(among.get(following, {}))))
    return []


def test_every_room_has_its_place_in_the_layers():
    rooms = {room(module) for module in files()}
    assert rooms == DEPTH.keys()


def test_the_documentation_lists_the_rooms_in_their_order():
    table = (PACKAGES.parent / "docs" / "architecture.md").read_text("utf-8").partition("\n## Rooms\n")[2]
    lines = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert [tuple(re.findall(r"`(\w+)`", line)) for line in lines] == list(LAYERS[1:])


def test_the_modules_that_the_documentation_names_are_there():
    text = (PACKAGES.parent / "docs" / "architecture.md").read_text("utf-8")
    paths = set(re.findall(r"`((?!tests)(?:[a-z_]+/)+(?:[a-z_]+\.py)?)`", text))
    assert len(paths) > 10
    missing = [path for path in sorted(paths) if not (CORE / "dataflex" / path).exists()]
    assert not missing


def test_imports_run_down_the_layers_and_never_sideways():
    wrong = [text for found in imports() if (text := wrong_way(found))]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle():
    among: dict[str, dict[str, int]] = {}
    for found in imports():
        among.setdefault(found.by, {}).setdefault(found.of, found.line)
    assert not (ring := circle(among)), "\n".join(map(str, ring))


def test_core_names_no_module_of_a_strategy_package():
    strategies = re.compile(r"dataflex_(selectors|mixers|weighters)\b")
    for module, path in files().items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            texts = [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []
            texts += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            texts += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for text in texts:
                assert not strategies.match(text), f"{module}, line {node.lineno}: {text}"


@pytest.mark.parametrize(
    "text",
    [
        "from dataflex.trainer.dynamic import DynamicTrainer\n",
        "def late():\n    from dataflex.trainer import dynamic\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import dataflex.trainer.dynamic\n",
        "BASES = {'one': 'dataflex.trainer.dynamic:DynamicTrainer'}\n",
        "found = import_module('dataflex.trainer.dynamic')\n",
    ],
    ids=["statement", "in a function", "for types", "import text with a class", "import text"],
)
def test_an_import_that_runs_up_is_seen_however_it_is_written(text):
    (found,) = imports_of("dataflex.core.schedule", text, frozenset(files()))
    assert (found.by, found.of) == ("dataflex.core.schedule", "dataflex.trainer.dynamic")
    assert f"dataflex.core.schedule, line {len(text.splitlines())}: dataflex.trainer.dynamic" in wrong_way(found)


def test_rooms_side_by_side_are_kept_apart():
    found = Import("dataflex.objective.parts", "dataflex.planning.planner", 3)
    assert wrong_way(found).endswith("(planning stands beside objective)")


@pytest.mark.parametrize(
    ("edges", "length"), [("ab bc", 0), ("ab ba", 2), ("ab bc cd db", 3), ("ab ac cd bd", 0), ("xy ab bc ca", 3)]
)
def test_circles_of_any_length_are_found(edges, length):
    among: dict[str, dict[str, int]] = {}
    for number, (a, b) in enumerate(edges.split()):
        among.setdefault(a, {})[b] = number
    ring = circle(among)
    assert len(ring) == length
    assert not ring or ring[0].by == ring[-1].of


def test_modules_and_functions_are_small():
    sizes, wrong = {}, []
    for source in sorted(PACKAGES.glob("*/src")):
        for path in sorted(source.rglob("*.py")):
            text = path.read_text("utf-8")
            sizes[dotted(path, source)] = size = text.count("\n")
            if size > LINES:
                wrong.append(f"{path.relative_to(PACKAGES)} has {size} lines, allowed: {LINES}")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                    own = node.end_lineno - node.lineno + 1
                    if own > FUNCTION_LINES:
                        where = f"{path.relative_to(PACKAGES)}, line {node.lineno}"
                        wrong.append(f"{where}: {node.name} has {own} lines, allowed: {FUNCTION_LINES}")
    middle = median(sizes.values())
    print(f"{len(sizes)} modules, {middle:g} lines in the median, at most {max(sizes.values())}")
    assert not wrong, "\n".join(wrong)
    assert middle <= MEDIAN_LINES
