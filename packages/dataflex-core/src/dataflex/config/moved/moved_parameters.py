"""A preset of their ``components.yaml``, with its parameters as ours.

Theirs is told from ours by the table, parameter by parameter: what it does not name, or names as the same, stays as it
is. Where a file holds anything that is theirs alone, what its presets leave out is told as well, if it means something
else here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dataflex.config.moved.moved_table import (
    NOT_SAID,
    RENAMED,
    SAME,
    UNUSED,
    Move,
    Moves,
    absent,
    keys,
    parameters,
)
from dataflex.config.moved.moved_values import CONVERSIONS, among, filled, product, shares_in, shown
from dataflex.core.errors import Problem
from dataflex.utils.secret_values import masked

THERE = "OpenDCAI/DataFlex"


@dataclass(frozen=True)
class RunKeys:
    """What a preset is read beside.

    Attributes:
        written: dataflex's keys that the run gives, with their values.
        start: The step at which the component begins.
    """

    written: Mapping[str, Any] = field(default_factory=dict)
    start: int = 0

    def admits(self, when: Mapping[str, tuple[Any, ...]]) -> bool:
        """Whether each of those keys is given with one of those values; a key that is not given has its default."""
        return all(self.written.get(key, _DEFAULTS.get(key)) in allowed for key, allowed in when.items())


_DEFAULTS = {"train_type": "static", "mixture_sample_rule": "mixture", "static_mix": False}


@dataclass
class MovedPreset:
    """A preset as it has been read.

    Attributes:
        params: Our parameters.
        spelled: Our parameter -> how the file writes it, where that differs.
        problems: What is refused.
        unused: What has no effect here, each with why.
        differing: Of these, what changes results.
    """

    params: dict[str, Any] = field(default_factory=dict)
    spelled: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)


def read_preset(section: str, component: str, params: Mapping[str, Any], where: str, run: RunKeys) -> MovedPreset:
    """Returns a preset of a user's components file with our parameters.

    Args:
        section: The section of the file.
        component: The component behind it.
        params: Its parameters, as written.
        where: Its place, ``file: section.key``.
        run: What it is read beside.
    """
    moves, found = parameters(section, component), MovedPreset()
    flat = dict(_flat(params, moves))
    for name, value in flat.items():
        move = moves.get(name)
        if move is None or move.fate == SAME:
            _take(found, name, value if move is None else move.converted(value), name, where)
        elif all(flat.get(key) == wanted for key, wanted in move.beside.items()):
            _read(move, value, flat, found, where, run)
        else:
            found.unused.append(f"{name} (without {_listed(move.beside)})")
    for move in moves.values():
        if move.name not in flat and not move.times.keys().isdisjoint(flat):  # a factor of what has its default there
            _read(move, move.default, flat, found, where, run)
    return found


def only_theirs(section: str, component: str, params: Mapping[str, Any]) -> str | None:
    """Returns the first parameter of a preset that no component here has and theirs does; None where there is none.

    A component that is theirs alone counts as well; then it is the component.
    """
    if component in absent().get(section, {}):
        return component
    moves = parameters(section, component)
    return next((name for name, _ in _flat(params, moves) if name in moves and moves[name].fate != SAME), None)


def not_here_yet(section: str, component: str) -> str | None:
    """Returns what comes nearest to a component of theirs that is not here; None where it is none."""
    return absent().get(section, {}).get(component)


def known_there(section: str, component: str, name: str) -> str | None:
    """Returns what to write for a parameter of theirs, given where only ours are read; None where it is none."""
    move = parameters(section, component).get(name)
    if move is None or move.fate == SAME:
        return None
    return f"in {THERE}'s components.yaml it is {move.to}; write that" if move.to else f"remove it; {move.why}"


def differences(
    section: str,
    component: str,
    given: Mapping[str, Any],
    overridden: Iterable[str],
    defaults: Mapping[str, Any],
    run: RunKeys,
) -> Iterator[str]:
    """Yields a sentence for each parameter and key whose absence, or whose value, means something else there.

    Args:
        section: The section of the preset.
        component: The component.
        given: The parameters that the file gives, ours.
        overridden: Those that the run gives.
        defaults: Our parameters and what they are where nobody gives them.
        run: The run.
    """
    ours = set(overridden)
    for move in parameters(section, component).values():
        if move.ours in ours:
            continue
        if move.ours not in given:
            yield from _left_out(move, defaults, run)
        yield from _unlike(move, given)
    for move in keys().values():
        if not run.admits(move.when):
            continue
        if move.default is not NOT_SAID and move.name not in run.written:
            yield f"{move.name} is not given: {move.default} there, {move.here} here -> {move.name}: {move.default}"
        yield from _unlike(move, run.written)


def _left_out(move: Move, defaults: Mapping[str, Any], run: RunKeys) -> Iterator[str]:
    """Yields a sentence for a parameter that is not given."""
    if move.default is NOT_SAID:
        return
    there = move.converted(move.default)
    for default in move.times.values():
        there *= default
    here = defaults.get(move.ours)
    if move.at_most:
        if there > run.start:
            yield f"{move.name} is not given: {there} there, {move.here} here"
    elif here != there:
        yield f"{move.ours} is not given: {shown(there)} there, {shown(here)} here -> {move.ours}: {shown(there)}"


def _unlike(move: Move, given: Mapping[str, Any]) -> Iterator[str]:
    """Yields a sentence for a value that means something else there."""
    for value, said in move.unlike:
        if move.name in given and given[move.name] == value:
            yield f"{move.name}: {shown(value)} is {said}"


def _read(move: Move, value: Any, flat: Mapping[str, Any], found: MovedPreset, where: str, run: RunKeys) -> None:
    """Reads one parameter that is not ours."""
    becomes = next((ours for there, ours in move.becomes if there == value), None)
    if becomes is not None:
        for name, ours in becomes.items():
            _take(found, name, ours, move.name, where)
    elif move.fate == UNUSED or _without_effect(move, value, run):
        (found.differing if move.differs else found.unused).append(f"{move.name} ({move.why})")
    elif move.fate == RENAMED and not among(value, move.refused_as):
        ours = CONVERSIONS[move.convert](value) if move.convert else move.converted(value)
        for other, default in move.times.items():
            ours = product(ours, flat.get(other, default))
        _take(found, move.to, ours, move.name, where)
        for name, beside in move.adds.items():
            _take(found, name, beside, move.name, where)
    else:
        way_out = filled(move.instead, value, run.start)
        way_out = f"write {way_out}" if ":" in way_out.split(" ")[0] else way_out
        found.problems.append(Problem(f"{where}.params.{move.name}", filled(move.refused, value, run.start), way_out))


def _without_effect(move: Move, value: Any, run: RunKeys) -> bool:
    """Whether a parameter says what holds here in any case."""
    if among(value, move.unused_as):
        return True
    if move.at_most:
        return isinstance(value, int) and value <= run.start
    if not move.equal:
        return False
    shares = shares_in(value)
    even = run.written.get("mixture_sample_rule") == "uniform" and shares is not None and len(set(shares)) == 1
    return even or (shares is not None and shares == shares_in(run.written.get(move.equal)))


def _take(found: MovedPreset, name: str, value: Any, written: str, where: str) -> None:
    if name in found.params and found.params[name] != value:
        other = found.spelled.get(name, name)
        here, there = (
            shown(masked(said, *by.split("."))) for said, by in ((found.params[name], other), (value, written))
        )
        what = f"says {there} for {name}, and {other} says {here}"
        found.problems.append(Problem(f"{where}.params.{written}", what, "leave one out"))
        return
    found.params[name] = value
    if written != name:
        found.spelled[name] = written


def _flat(params: Mapping[str, Any], moves: Moves, before: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the parameters, a mapping that the table looks into as one parameter for each of its keys."""
    for name, value in params.items():
        inside = f"{before}{name}."
        if isinstance(value, Mapping) and any(known.startswith(inside) for known in moves):
            yield from _flat(value, moves, inside)
        else:
            yield f"{before}{name}", value


def _listed(beside: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {shown(value)}" for key, value in beside.items())


def preset_theirs(section: str, body: Mapping[Any, Any]) -> str | None:
    """Returns ``preset.params.name`` of the first thing in a section that is theirs alone; None where there is none."""
    for key, entry in body.items():
        params = entry.get("params") if isinstance(entry, Mapping) else None
        name = entry.get("name", key) if isinstance(entry, Mapping) else key
        found = only_theirs(section, str(name), params if isinstance(params, Mapping) else {})
        if found is not None:
            return f"{section}.{key}" if found == name else f"{section}.{key}.params.{found}"
    return None
