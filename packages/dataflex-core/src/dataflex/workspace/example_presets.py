"""The ``components.yaml`` of a workspace: the files that installed packages ship, put together with their comments.

A component that no shipped file mentions, such as one of a small third-party package, gets an entry from its signature,
so that every installed component can be tuned in one place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dataflex.config.load import read_mapping
from dataflex.config.presets import FILE_NAME
from dataflex.core import registry
from dataflex.core.kinds import KINDS, Kind
from dataflex.discovery.catalog import ComponentInfo, components
from dataflex.discovery.describe import Expression
from dataflex.discovery.source_files import SourceNotFoundError, package_folders

_HEAD = """\
# Every installed component with its parameters and their defaults. A run's YAML names this file as components_cfg_file
# and an entry of it as component_name. The key of an entry is yours to choose; `name` is the component:
#
#     selectors:
#       loss_hard:
#         name: loss
#         params: {focus: high}
"""


def packaged_components() -> str:
    """Returns the text of a components file that holds every installed component."""
    return _HEAD + "".join(f"\n{kind.section}:\n{''.join(_entries(kind))}" for kind in KINDS if registry.provided(kind))


def _entries(kind: Kind) -> Iterator[str]:
    presets: set[str] = set()
    names: set[str] = set()
    for path in _shipped(kind):
        section = read_mapping(path).get(kind.section) or {}
        new = {key: entry for key, entry in section.items() if key not in presets}
        body = _section(path.read_text(encoding="utf-8"), kind.section)
        yield body if len(new) == len(section) and _same(body, new) else _dump(new)
        presets |= new.keys()
        names |= {(entry or {}).get("name", key) for key, entry in new.items()}
    for info in components([kind]):
        if info.name not in names and info.name not in presets:
            yield _from_signature(info)


def _shipped(kind: Kind) -> Iterator[Path]:
    for package in sorted({point.module.partition(".")[0] for point in registry.provided(kind)}):
        try:
            folders = package_folders(package)
        except SourceNotFoundError:  # a broken installation of somebody else's package
            continue
        yield from (folder / FILE_NAME for folder in folders if (folder / FILE_NAME).is_file())


def _section(text: str, section: str) -> str:
    """Returns the lines below ``section:`` with their comments, indented by two; empty if it is written otherwise."""
    found = re.search(rf"^{section}:[ \t]*(?:#.*)?\n((?:[ \t#].*\n|\n)*)", text.rstrip() + "\n", flags=re.MULTILINE)
    if found is None:
        return ""
    lines = found[1].rstrip().splitlines()
    while lines and (lines[-1].startswith("#") or not lines[-1].strip()):  # it speaks about the section that follows
        lines.pop()
    depth = min((len(line) - len(line.lstrip()) for line in lines if line.strip() and line[0] != "#"), default=0)
    return "".join("  " + line[depth if line[0] != "#" else 0 :] + "\n" if line.strip() else "\n" for line in lines)


def _same(body: str, section: dict[Any, Any]) -> bool:
    try:
        return bool(yaml.safe_load(body) == section)
    except yaml.YAMLError:
        return False


def _from_signature(info: ComponentInfo) -> str:
    plain = {key: value for key, value in info.parameters.items() if not isinstance(value, Expression)}
    notes = f"  # {info.summary}\n" if info.summary else ""
    notes += f"  # needs: {', '.join(info.required)}\n" if info.required else ""
    return notes + _dump({info.name: {"name": info.name, "params": plain}})


def _dump(section: dict[Any, Any]) -> str:
    if not section:
        return ""
    text: str = yaml.safe_dump(section, sort_keys=False, allow_unicode=True)
    return "".join(f"  {line}\n" for line in text.splitlines())
