"""The keys of a run's YAML that OpenDCAI/DataFlex has and we do not: read as ours, without effect, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dataflex.config.known_keys import readable_keys
from dataflex.config.moved.moved_parameters import THERE, RunKeys
from dataflex.config.moved.moved_table import RENAMED, SAME, Move, keys
from dataflex.config.moved.moved_values import among, shown
from dataflex.core.errors import Problem


@dataclass
class MovedKeys:
    """A run with our keys alone.

    Attributes:
        ours: dataflex's keys.
        theirs: LLaMA-Factory's.
        problems: What is refused.
        notes: What has no effect here, and what is read under another name.
    """

    ours: dict[str, Any]
    theirs: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_keys(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> MovedKeys:
    """Returns a run whose keys of OpenDCAI/DataFlex are read; one without any is returned as it is.

    Args:
        ours: dataflex's keys as they are written.
        theirs: Every other key.
    """
    found = MovedKeys(dict(ours), dict(theirs))
    run = RunKeys(found.ours)
    for move in keys().values():
        value = theirs.get(move.name)
        if move.fate == SAME or move.name not in theirs or move.name in readable_keys():
            continue
        if run.admits(move.only) or value is None or among(value, move.unused_as):
            del found.theirs[move.name]
            if value is not None:  # a key without a value is none, as LLaMA-Factory has it
                _read(move, value, run, found)
    return found


def _read(move: Move, value: Any, run: RunKeys, found: MovedKeys) -> None:
    if move.fate == RENAMED and run.admits(move.when):
        key, _, parameter = move.to.partition(".")
        given = found.ours.get(key) or {}
        if isinstance(given, Mapping) and given.get(parameter, value) == value:
            found.ours[key] = {**given, parameter: value}
            found.notes.append(f"{move.name} of {THERE} is read as {key}: {{{parameter}: {shown(value)}}}")
        else:
            what = f"is {shown(value)}, and {key} says otherwise"
            found.problems.append(Problem(move.name, what, f"remove it, and write {key}: {{{parameter}: VALUE}}"))
    elif among(value, move.unused_as):
        found.notes.append(f"{move.name} of {THERE} has no effect here: {move.why}")
    else:
        found.problems.append(Problem(move.name, f"is {shown(value)} of {THERE}: {move.refused}", move.instead))
