"""Files of presets: ``components.yaml``, the ones that strategy packages ship and the one a user writes.

Such a file has up to four sections, ``selectors``, ``mixers``, ``orders`` and ``weighters``. An entry's key is the
preset, which ``component_name`` names:

    selectors:
      loss_hard:
        name: loss  # the component; the preset's own name where absent
        params: {focus: high}

An order's entry may say ``by`` and ``over`` as well. Presets of the public implementation's ``reorders`` are read as
orders (:mod:`dataflex.config.reorders`); its ``pipelines`` are for :mod:`dataflex.config.lego`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from dataflex.config.axis_keys import BY, OVER, read_by, read_over
from dataflex.config.load import read_mapping
from dataflex.config.moved.moved_parameters import preset_theirs
from dataflex.config.reorders import PIPELINES, SECTIONS, lines, read_reorder, reorders_in
from dataflex.config.resolved import END
from dataflex.config.variables import unescaped, variable_problems
from dataflex.core import registry
from dataflex.core.errors import ConfigError, InvalidConfigError, Problem, listed, nearest
from dataflex.core.files import COMPONENTS
from dataflex.core.kinds import BY_SECTION, ORDER, Kind
from dataflex.discovery.source_files import SourceNotFoundError, package_folders
from dataflex.utils.secret_values import masked, remember

FILE_NAME = "components.yaml"
ENTRY_KEYS = ("name", "params")
_OF_ORDERS = {BY: read_by, OVER: read_over}


@dataclass(frozen=True)
class Entry:
    """One preset.

    Attributes:
        name: The component behind it.
        params: Constructor parameters.
        where: ``file: section.key``, for messages.
        package: The distribution that ships it; blank for a user's own.
        by: Of an order, where its scores come from.
        over: Of an order, what it arranges.
        refused: Why it cannot be used; said only where it is.
        notes: What is to be said where it is used.
        spelled: Parameter -> how the file writes it, where that differs.
        theirs: What in the file is OpenDCAI/DataFlex's alone; None where nothing is.
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""
    package: str = ""
    by: str | None = None
    over: str | None = None
    refused: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    spelled: Mapping[str, str] = field(default_factory=dict)
    theirs: str | None = None

    def place(self, parameter: str) -> str:
        """Returns where the file has a parameter."""
        return f"{self.where}.params.{self.spelled.get(parameter, parameter)}"


def read_components(path: Path) -> dict[str, dict[str, Entry]]:
    """Returns section -> preset -> entry.

    Raises:
        ConfigError: Everything that is wrong with the file, in one message.
    """
    content = read_mapping(path)
    remember(content)  # before any of it can be in a message
    if path.name == COMPONENTS and not path.read_text(encoding="utf-8").rstrip().endswith(END):
        raise ConfigError(
            f"{path}: the file does not end with '{END}', as a run writes it: it was cut off -> restore it, or give a "
            "file of your own another name"
        )
    problems: list[Problem] = []
    sections = {
        section: {str(key): _entry(path, section, str(key), item, problems) for key, item in body.items()}
        for section, body in _sections(path, content, problems).items()
    }
    section, reorders = reorders_in(content)
    if reorders:
        sections[ORDER.section] = _reorders(path, section, reorders) | sections.get(ORDER.section, {})
    if problems:
        raise InvalidConfigError(problems)
    theirs = _theirs(content)
    return {
        section: {key: replace(entry, theirs=theirs) for key, entry in body.items()}
        for section, body in sections.items()
    }


def _theirs(content: Mapping[Any, Any]) -> str | None:
    """Returns the first thing in a file that is OpenDCAI/DataFlex's alone; None where there is none."""
    sections = {str(section): body for section, body in content.items() if isinstance(body, dict)}
    found = (preset_theirs(section, body) for section, body in sections.items())
    others = (section for section in sections if section in (*SECTIONS, PIPELINES))
    return next((place for place in found if place is not None), next(others, None))


@cache
def packaged_components(kind: Kind) -> Mapping[str, tuple[Entry, ...]]:
    """Returns preset -> entries of that kind from every installed package; more than one entry is a conflict.

    Raises:
        ConfigError: A package ships a file that cannot be read.
    """
    found: dict[str, tuple[Entry, ...]] = {}
    modules = {point.module.partition(".")[0]: registry.package_of(point) for point in registry.provided(kind)}
    for module, package in sorted(modules.items()):
        for path in _packaged_files(module):
            for key, entry in read_components(path).get(kind.section, {}).items():
                found[key] = (*found.get(key, ()), replace(entry, package=package))
    return found


def _packaged_files(package: str) -> list[Path]:
    try:
        folders = package_folders(package)
    except SourceNotFoundError:  # its components will say so when they are asked for
        return []
    return [path for path in (folder / FILE_NAME for folder in folders) if path.is_file()]


def _sections(path: Path, content: Mapping[Any, Any], problems: list[Problem]) -> dict[str, Mapping[Any, Any]]:
    sections: dict[str, Mapping[Any, Any]] = {}
    for section, entries in content.items():
        where = f"{path}: {section}"
        if section in (*SECTIONS, PIPELINES):
            continue
        if section not in BY_SECTION:
            hint = nearest(str(section), BY_SECTION) or "move its entries under one of these"
            problems.append(Problem(where, f"no such section; allowed: {listed(BY_SECTION)}", hint))
        elif entries is not None and not isinstance(entries, dict):
            what = f"found {masked(entries, str(section))!r} where a mapping of entries is expected"
            problems.append(Problem(where, what, "write 'preset: {name: ..., params: {...}}' below it"))
        else:
            sections[section] = entries or {}
    return sections


def _reorders(path: Path, section: str, body: Mapping[Any, Any]) -> dict[str, Entry]:
    """Returns the presets of ``reorders``. What is wrong with one is said only where it is used, as there."""
    entries = {}
    for key, value in body.items():
        where = f"{path}: {section}.{key}"
        params = value.get("params") if isinstance(value, dict) else None
        if not isinstance(params, dict):
            what = "found no mapping under params"
            entries[str(key)] = Entry(str(key), {}, where, refused=(Problem(where, what, "write params: {...}"),))
            continue
        read = read_reorder(str(key), params, where)
        refused = list(read.problems)
        if read.every != 1:
            what = f"is {read.every}, and a preset has no every"
            refused.append(Problem(f"{where}.params.reorder_every", what, f"write {lines({ORDER.name: read.part()})}"))
        by = read_by(f"{where}.params.score_params", read.by, path.parent) if read.by is not None else None
        if isinstance(by, Problem):
            refused, by = [*refused, by], None
        entries[str(key)] = Entry(read.name, read.params, where, "", by, read.over, tuple(refused), tuple(read.notes))
    return entries


def _entry(path: Path, section: str, key: str, value: Any, problems: list[Problem]) -> Entry:
    where = f"{path}: {section}.{key}"
    own = _OF_ORDERS if BY_SECTION[section] is ORDER else {}
    allowed = (*ENTRY_KEYS, *own)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        what = f"found {masked(value, key)!r} where a mapping is expected"
        problems.append(Problem(where, what, "write name: and params: below it"))
        return Entry(key, {}, where)
    for unknown in [k for k in value if k not in allowed]:
        hint = nearest(str(unknown), allowed) or f"constructor parameters stand below params: ({where}.params)"
        problems.append(Problem(f"{where}.{unknown}", f"no such key; allowed: {listed(allowed)}", hint))
    name, params = value.get("name", key), value.get("params")
    if not isinstance(name, str) or not name:
        what = f"found {name!r}, allowed: the name of a component"
        problems.append(Problem(f"{where}.name", what, "see dataflex-cli list"))
    elif name.lstrip().startswith(":"):
        problems.append(Problem(f"{where}.name", f"found '{name}', without a package before the colon", "write one"))
    if params is not None and not isinstance(params, dict):
        what = f"found {masked(params, key)!r} where a mapping is expected"
        problems.append(Problem(f"{where}.params", what, "write one 'parameter: value' per line below it"))
        params = None
    problems += variable_problems(params, f"{where}.params")
    said = {k: read(f"{where}.{k}", value[k], path.parent) for k, read in own.items() if value.get(k) is not None}
    problems += [found for found in said.values() if isinstance(found, Problem)]
    by, over = (found if isinstance(found := said.get(key), str) else None for key in (BY, OVER))
    return Entry(str(name), {str(k): unescaped(v) for k, v in (params or {}).items()}, where, by=by, over=over)


def user_components(path: str | Path | None, kind: Kind) -> Mapping[str, Entry]:
    """Returns preset -> entry of that kind from the user's file; empty where there is none.

    Raises:
        ConfigError: The file is missing, malformed, or wrong.
    """
    if path is None:
        return {}
    try:
        return read_components(Path(path)).get(kind.section, {})
    except InvalidConfigError:
        raise
    except ConfigError as error:
        missing = not Path(path).exists()
        way_out = "remove the key unless you have presets of your own: those of the packages come with them"
        raise InvalidConfigError([Problem("components_cfg_file", str(error), way_out if missing else "")]) from error
