"""What would make deciding cheaper: the same run with other values of parameters that its components have.

Each value is put into the configuration and the components are asked again, so nothing is advised that was not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from dataflex.config.arguments import COMPOSED
from dataflex.config.spec import Part, RunSpec
from dataflex.core.kinds import SELECTOR
from dataflex.discovery.component_classes import find
from dataflex.discovery.construct import constructor_parameters
from dataflex.forecast.forecast import Forecast, estimated

WORTH = 0.02
"""The share of the compute from which on advice is given."""
GOOD = 0.05
"""A share that needs no further advice; so is a quarter of what it was."""
SAVES = 0.7
"""What must be left at most of the work of deciding, for a change to be advised."""


@dataclass(frozen=True)
class Advice:
    """A change of a run.

    Attributes:
        says: Key and value, as they are written into the file.
        share: The share of the compute that deciding would take.
    """

    says: str
    share: float


def advice(found: Forecast) -> Advice | None:
    """Returns the mildest change that makes deciding cheap, else the one that saves most; None if little is saved."""
    if found.share < WORTH:
        return None
    best: Advice | None = None
    for says, spec in _changes(found):
        changed = estimated(spec, found.facts)
        if not _can_run(changed):
            continue
        new = Advice(says, changed.share)
        if new.share <= max(GOOD, found.share / 4):
            return new
        best = new if best is None or new.share < best.share else best
    return best if best is not None and _odds(best.share) < SAVES * _odds(found.share) else None


def _odds(share: float) -> float:
    """Returns what deciding takes, in what training takes."""
    return share / (1 - share) if share < 1 else float("inf")


def _changes(found: Forecast) -> Iterator[tuple[str, RunSpec]]:
    """Yields changes, each parameter's from the mildest on."""
    spec = found.spec
    rows = found.facts.data.count or found.rows
    asked = found.batch * found.schedule.longest_update
    for place, part in enumerate(spec.axes):
        known, _ = constructor_parameters(find(part.component.kind, part.component.name))
        params = {name: parameter.default for name, parameter in known.items()} | dict(part.component.params)
        for name, value in _values(params, rows, asked):
            yield f"{name}: {value}", _with(spec, place, part, {name: value})
    yield from _rarer(spec)


def _values(params: dict[str, Any], rows: float, asked: int) -> Iterator[tuple[str, Any]]:
    if "candidates" in params:
        most = rows if params["candidates"] is None else params["candidates"]
        yield from (("candidates", value) for value in _round_numbers(most) if value >= 2 * asked)
    if params.get("scores") == "fresh":
        yield "scores", "seen"
    if isinstance(params.get("pool_factor"), int | float):
        yield from (("pool_factor", value) for value in (5.0, 3.0, 2.0) if value < params["pool_factor"])
    for name, values in (("representatives", (2, 1)), ("directions", (8, 4))):
        if isinstance(params.get(name), int):
            yield from ((name, value) for value in values if value < params[name])
    if isinstance(params.get("refresh"), int):
        yield from (("refresh", factor * params["refresh"]) for factor in (2, 5, 10))


def _round_numbers(most: float) -> Iterator[int]:
    """Yields 1, 2 and 5 times powers of ten below ``most``, the largest first."""
    for power in range(12, -1, -1):
        yield from (digit * 10**power for digit in (5, 2, 1) if digit * 10**power < most)


def _with(spec: RunSpec, place: int, part: Part, params: dict[str, Any]) -> RunSpec:
    component = replace(part.component, params={**part.component.params, **params})
    if not spec.parts:
        return replace(spec, component=component)
    parts = [replace(part, component=component) if n == place else each for n, each in enumerate(spec.parts)]
    return replace(spec, parts=tuple(parts))


def _rarer(spec: RunSpec) -> Iterator[tuple[str, RunSpec]]:
    """Yields the run with fewer updates in as many steps."""
    keys = spec.arguments
    fixed = keys.train_step or not keys.update_times > 0
    for factor in (2, 4) if keys.update_step else ():
        if keys.train_type == COMPOSED and spec.selector is not None and spec.selector.component.kind is SELECTOR:
            parts = tuple(
                replace(part, every=factor * part.every) if part == spec.selector else part for part in spec.parts
            )
            yield f"every: {factor * spec.selector.every}", replace(spec, parts=parts)
        longer = replace(keys, update_step=factor * keys.update_step)
        says = f"update_step: {longer.update_step}"
        if not fixed:
            if keys.update_times % factor or keys.update_times == factor:
                continue
            longer = replace(longer, update_times=keys.update_times // factor)
            says += f", update_times: {longer.update_times}"
        yield says, replace(spec, arguments=longer)


def _can_run(changed: Forecast) -> bool:
    """Returns whether the updates that are left ask for no more rows than there are."""
    rows, selector = changed.facts.data.count, changed.spec.selector
    if not changed.schedule.updates:
        return False
    return (
        rows is None
        or selector is None
        or changed.spec.mixes
        or changed.batch * changed.schedule.longest_update <= rows
    )
