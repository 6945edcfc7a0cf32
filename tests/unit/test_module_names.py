"""Names of modules: each says which module is meant, in all packages together."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

PACKAGES = Path(__file__).parents[2] / "packages"
STUBS = Path("dataflex/train")  # the documented import paths, which only re-export

COMPONENTS = {"custom", "loss", "random", "schedule"}
"""Strategies whose module has the name that the user writes, which another strategy, or core, has as well."""

SHARED = {"__init__"} | COMPONENTS
PLURALS = {
    "column",
    "dataset",
    "score",
    "segment",
    "token_column",
}  # strategies and commands of these names, beside others


def modules() -> dict[str, list[str]]:
    """Returns name -> the modules of that name, as paths below ``src``."""
    found = defaultdict(list)
    for source in sorted(PACKAGES.glob("*/src")):
        for path in sorted(source.rglob("*.py")):
            below = path.relative_to(source)
            if STUBS not in below.parents:
                found[path.stem].append(str(below))
    return found


def said(wrong: dict[str, list[str]]) -> str:
    return "\n".join(f"{name}: {', '.join(paths)}" for name, paths in sorted(wrong.items()))


def test_no_two_modules_share_a_name():
    shared = {name: paths for name, paths in modules().items() if len(paths) > 1}
    new = {name: paths for name, paths in shared.items() if name not in SHARED}
    assert not new, said(new)
    assert not SHARED - shared.keys(), "these are no exceptions any more: remove them from the lists"


def test_no_two_modules_differ_by_a_plural():
    found = modules()
    plurals = {name: [*paths, *found[f"{name}s"]] for name, paths in sorted(found.items()) if f"{name}s" in found}
    new = {name: paths for name, paths in plurals.items() if name not in PLURALS}
    assert not new, said(new)
    gone = PLURALS - plurals.keys()
    assert not gone, f"{gone} are no exceptions any more: remove them from the lists"


def test_a_module_beside_the_strategies_is_a_strategy():
    for kind in ("selectors", "mixers", "weighters"):
        package, name = PACKAGES / f"dataflex-{kind}", f"dataflex_{kind}"
        entry_points = (package / "pyproject.toml").read_text()
        beside = {path.stem for path in (package / "src" / name).glob("*.py")} - {"__init__"}
        unnamed = [module for module in sorted(beside) if f'"{name}.{module}:' not in entry_points]
        assert not unnamed, f"{name}: no entry point names {unnamed} -> move them to parts/"
