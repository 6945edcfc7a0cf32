"""The parts of a composed run as they are written: ``selector``, ``mixer``, ``order`` and ``weighter`` of ``dynamic``.

Each is the name of a preset or component, or a mapping:

    selector:
      - {component: NAME, keep: 0.5, every: 2}  # a filter
      - NAME                                    # chooses the rows
    order: {component: NAME, by: length, over: stretch, params: {PARAMETER: VALUE}}

Here they are read key by key; :mod:`dataflex.config.checks.combination` looks at them together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dataflex.config.checks.parsed_config import find_path
from dataflex.config.checks.ranges import MOST_STEPS
from dataflex.core.errors import Problem, listed, nearest
from dataflex.core.kinds import KINDS, ORDER, SELECTOR, WEIGHTER, Kind
from dataflex.core.parameter_checks import is_number
from dataflex.utils.secret_values import masked

COMPONENT, PARAMS, EVERY, FROM, KEEP, BY, OVER = "component", "params", "every", "from", "keep", "by", "over"
FILE, COLUMN = "file:", "column:"
BY_NAMES = ("loss", "length", "selector", "seen", "reward", "reward:spread")
SEEN = "seen:"
BY_ALLOWED = f"{' | '.join(BY_NAMES)} | {SEEN}STEPS | {COLUMN}NAME | {FILE}PATH"
OVER_NAMES = ("run", "stretch")

NEEDS_SCORES = "needs_scores"
"""The constant of an order's class that says whether it looks at scores."""

_COMMON = (COMPONENT, PARAMS, EVERY, FROM)
_OWN = {SELECTOR: (KEEP,), ORDER: (BY, OVER)}
AXES: Mapping[str, Kind] = {kind.name: kind for kind in KINDS}
"""Key of a run -> the kind of its component."""


def keys_of(kind: Kind) -> tuple[str, ...]:
    """Returns the keys of a mapping of that kind."""
    return (*(key for key in _COMMON if kind is not WEIGHTER or key != EVERY), *_OWN.get(kind, ()))


def parse_axis(key: str, value: Any, folder: Path) -> tuple[Any, list[Problem]]:
    """Returns what an axis is given, every part as a mapping, and what is wrong with it.

    Args:
        key: A key of :data:`AXES`.
        value: What stands under it.
        folder: The folder of the YAML, for the path of a file of scores.
    """
    kind = AXES[key]
    if not isinstance(value, list | tuple):
        return _part(kind, key, value, folder)
    if kind is not SELECTOR:
        what = f"found a list of {len(value)}, allowed: one {kind.name}"
        return None, [Problem(key, what, "write one name or mapping; only selector may be a list")]
    if not value:
        return None, [Problem(key, "found an empty list, allowed: one selector or more", "name one, or remove the key")]
    found = [_part(kind, f"{key}[{number}]", item, folder) for number, item in enumerate(value)]
    return tuple(part or {} for part, _ in found), [problem for _, problems in found for problem in problems]


def _part(kind: Kind, where: str, value: Any, folder: Path) -> tuple[Mapping[str, Any] | None, list[Problem]]:
    if isinstance(value, str) and value.strip():
        return {COMPONENT: value}, []
    allowed = keys_of(kind)
    if not isinstance(value, Mapping):
        what = f"found {masked(value, kind.name)!r:.80}, allowed: a name, or a mapping with {listed(allowed)}"
        return None, [Problem(where, what, f"write {kind.name}: NAME; dataflex-cli list has the names")]
    part: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, given in value.items():
        if key not in allowed:
            problems.append(_unknown(kind, where, str(key)))
        elif given is not None:
            found = _READERS[key](f"{where}.{key}", given, folder)
            if isinstance(found, Problem):
                problems.append(found)
            else:
                part[str(key)] = found
    return part, problems


def _unknown(kind: Kind, where: str, key: str) -> Problem:
    allowed = keys_of(kind)
    if kind is WEIGHTER and key == EVERY:
        what = "a weighter weighs every batch, so there is no update for it to leave out"
        return Problem(f"{where}.{key}", what, "remove it; from: STEP says when it begins")
    hint = nearest(key, allowed)
    if key == "name":
        hint = f"write {COMPONENT}"
    what = f"no such key; allowed: {listed(allowed)}"
    return Problem(f"{where}.{key}", what, hint or f"parameters of the {kind.name} stand under {where}.{PARAMS}")


def _component(where: str, value: Any, _: Path) -> str | Problem:
    if isinstance(value, str) and value.strip():
        return value
    return Problem(where, f"found {value!r:.80}, allowed: a preset or the name of a component", "see dataflex-cli list")


def _params(where: str, value: Any, _: Path) -> Mapping[str, Any] | Problem:
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return dict(value)
    what = f"found {masked(value, PARAMS)!r:.80}, allowed: a mapping from parameters to values"
    return Problem(where, what, f"write {PARAMS}: {{NAME: VALUE}}")


def _whole(least: int) -> Callable[[str, Any, Path], int | Problem]:
    def read(where: str, value: Any, _: Path) -> int | Problem:
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= MOST_STEPS:
            return value
        meaning = "1 is every update" if least else "0 is the first step"
        return Problem(where, f"found {value!r:.80}, allowed: a whole number, {least} or more", meaning)

    return read


def _keep(where: str, value: Any, _: Path) -> float | Problem:
    if is_number(value) and 0 < value <= 1:
        return float(value)
    percent = is_number(value) and 1 < value <= 100
    way_out = (
        f"write {value / 100:g} for {value:g} %" if percent else "write the share of the rows to keep, such as 0.5"
    )
    return Problem(where, f"found {value!r:.80}, allowed: a number above 0, up to 1", way_out)


def read_by(where: str, value: Any, folder: Path) -> str | Problem:
    """Returns where scores come from, with the path of a file made absolute."""
    if isinstance(value, str) and value in BY_NAMES:
        return value
    if isinstance(value, str) and value.startswith(COLUMN) and value.removeprefix(COLUMN).strip():
        return COLUMN + value.removeprefix(COLUMN).strip()
    if isinstance(value, str) and value.startswith(FILE) and value.removeprefix(FILE).strip():
        return FILE + str(find_path(value.removeprefix(FILE).strip(), folder))
    if isinstance(value, str) and value.startswith(SEEN) and value.removeprefix(SEEN).isdecimal() and value != "seen:0":
        return value
    hint = nearest(str(value), BY_NAMES) or "say where the scores come from"
    return Problem(where, f"found {value!r:.80}, allowed: {BY_ALLOWED}", hint)


def read_over(where: str, value: Any, _: Path) -> str | Problem:
    """Returns what is arranged."""
    if isinstance(value, str) and value in OVER_NAMES:
        return value
    hint = nearest(str(value), OVER_NAMES) or "run: all rows that are left of the pass; stretch: the rows chosen"
    return Problem(where, f"found {value!r:.80}, allowed: {' | '.join(OVER_NAMES)}", hint)


_READERS: Mapping[str, Callable[[str, Any, Path], Any]] = {
    COMPONENT: _component,
    PARAMS: _params,
    EVERY: _whole(1),
    FROM: _whole(0),
    KEEP: _keep,
    BY: read_by,
    OVER: read_over,
}
