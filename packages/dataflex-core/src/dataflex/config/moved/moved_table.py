"""The table of what becomes of the keys, components and parameters of OpenDCAI/DataFlex: ``opendcai.yaml``, as objects.

It is data, so that no strategy is named in code and a page can be tested against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

SAME, RENAMED, UNUSED, REFUSED = FATES = ("same", "renamed", "unused", "refused")
NOT_SAID = object()
"""The default of a parameter whose absence means the same there and here."""


@dataclass(frozen=True)
class Move:
    """What becomes of one key or parameter of theirs.

    Attributes:
        name: As they write it; below a mapping ``outer.inner``.
        fate: ``same``: ours too, read as ours. ``renamed``: ours has another name. ``unused``: accepted, without effect
            here. ``refused``: an error with the lines to write instead.
        to: Our parameter, or our key and its parameter.
        why: Why it has no effect, or what a reader of the renamed one must know.
        differs: Whether leaving it out changes results; then that is a warning.
        refused: What is wrong with it; ``{value}`` is what was found.
        instead: The lines to write.
        default: Theirs where it is not given, if leaving it out means something else here.
        here: What leaving it out means here, in words; our parameter's default where blank.
        unlike: Pairs of a value that means something else there, and what.
        values: Pairs of their value and ours; others stay.
        becomes: Pairs of their value and our parameters.
        adds: Parameters of ours that come with it.
        times: The parameter of theirs, and its default, that the value is multiplied by.
        convert: The name of a conversion of :mod:`dataflex.config.moved.moved_values`.
        unused_as: Values with which it has no effect.
        refused_as: Values that are refused.
        only: Keys of the run -> values with which alone a key is theirs; with others it is unknown, as ever.
        when: Keys of the run -> values with which it is renamed, or what differs is told.
        beside: Parameters beside it -> values with which alone it counts.
        at_most: ``start``: no effect up to the step at which the component begins.
        equal: The key of the run that it may repeat.
    """

    name: str
    fate: str
    to: str = ""
    why: str = ""
    differs: bool = False
    refused: str = ""
    instead: str = ""
    default: Any = NOT_SAID
    here: str = ""
    unlike: tuple[tuple[Any, str], ...] = ()
    values: tuple[tuple[Any, Any], ...] = ()
    becomes: tuple[tuple[Any, Mapping[str, Any]], ...] = ()
    adds: Mapping[str, Any] = field(default_factory=dict)
    times: Mapping[str, int] = field(default_factory=dict)
    convert: str = ""
    unused_as: tuple[Any, ...] = ()
    refused_as: tuple[Any, ...] = ()
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    beside: Mapping[str, Any] = field(default_factory=dict)
    at_most: str = ""
    equal: str = ""

    @property
    def ours(self) -> str:
        """Our name for it, where it has one."""
        return self.name if self.fate == SAME else self.to

    def converted(self, value: Any) -> Any:
        """Returns our value for theirs."""
        return next((here for there, here in self.values if there == value), value)


Moves = Mapping[str, Move]


def keys() -> Moves:
    """Returns the keys of a run."""
    return _table()[0]


def parameters(section: str, component: str) -> Moves:
    """Returns the parameters of a component; empty where they have none of that name.

    Args:
        section: ``selectors``, ``mixers`` or ``weighters``.
        component: Its name, the same there and here.
    """
    return _table()[1].get(section, {}).get(component, {})


def components() -> Mapping[str, Mapping[str, Moves]]:
    """Returns section -> component -> parameters."""
    return _table()[1]


def absent() -> Mapping[str, Mapping[str, str]]:
    """Returns section -> component of theirs that is not here -> what comes nearest."""
    return _table()[2]


@cache
def _table() -> tuple[Moves, Mapping[str, Mapping[str, Moves]], Mapping[str, Mapping[str, str]]]:
    text = files("dataflex.config.moved").joinpath("opendcai.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    moves = {
        section: {component: _moves(rows) for component, rows in body.items()}
        for section, body in content["components"].items()
    }
    return _moves(content["keys"]), moves, content["absent"]


def _moves(rows: Mapping[str, Mapping[str, Any]]) -> Moves:
    known = {each.name for each in fields(Move)}
    for name, row in rows.items():
        assert row["fate"] in FATES, f"{name}: {row}"
        assert row.keys() <= known, f"{name}: {row}"
    return {name: Move(name, **{key: _frozen(value) for key, value in row.items()}) for name, row in rows.items()}


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
