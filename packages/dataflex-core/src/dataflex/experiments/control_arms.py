"""The controls: the same run with a strategy that looks at nothing in the place of the one that is tried.

Which place that is follows from the run: the selector, else the mixer, else the order, else the weighter. The other
axes of a composed run stay as they are.

| what is tried | `random` | `static` | compared with |
| --- | --- | --- | --- |
| selector | rows at random | a static run | random |
| order | rows in a random order | a static run | random |
| mixer | shares drawn at random | the initial shares throughout | static |
| weighter | - | a static run: all weights 1 | static |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dataflex.config.arguments import COMPOSED
from dataflex.config.axis_keys import COMPONENT, EVERY, FROM, OVER
from dataflex.config.spec import RunSpec
from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER, Kind
from dataflex.experiments.arm_steps import as_static

RANDOM, STATIC = "random", "static"
_LOOKS_AT_NOTHING: Mapping[tuple[str, Kind], str] = {
    (RANDOM, SELECTOR): "random",
    (RANDOM, MIXER): "random",
    (RANDOM, ORDER): "shuffle",
    (STATIC, MIXER): "static",
}
"""Role and kind -> the component that plays it."""


def tried(spec: RunSpec) -> Kind | None:
    """Returns the axis that a control stands in for; None for a static run."""
    kinds = {part.component.kind for part in spec.axes} | ({MIXER} if spec.mixes else set())
    return next((kind for kind in (SELECTOR, MIXER, ORDER, WEIGHTER) if kind in kinds), None)


def same_family(one: RunSpec, other: RunSpec) -> bool:
    """Returns whether two runs have the same controls: the same axis is tried, and the others are the same."""
    return _family(one) == _family(other)


def reference_role(spec: RunSpec) -> str:
    """Returns the role of the control that a run is compared with."""
    return RANDOM if tried(spec) in (SELECTOR, ORDER) else STATIC


def controls_for(config: Mapping[str, Any], spec: RunSpec, steps: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (role, keys) of the controls of a run; none for a static one.

    Args:
        config: The run.
        spec: The same, checked.
        steps: Of the static run; None where ``num_train_epochs`` says how long it is.
    """
    kind = tried(spec)
    if kind is None:
        return
    if kind is not WEIGHTER:
        yield RANDOM, _with(RANDOM, kind, config)
    yield STATIC, _with(STATIC, kind, config) if kind is MIXER else as_static(config, steps)


def control_of(spec: RunSpec, arm: RunSpec) -> str | None:
    """Returns the role that a run plays for an arm; None where it is no control of it."""
    kind = tried(arm)
    if kind is None:
        return None
    if kind is not MIXER and not spec.arguments.dynamic:
        return STATIC
    if not same_family(spec, arm):
        return None
    if kind is MIXER and spec.mixer is None:
        return STATIC  # static_mix
    names = {part.component.name for part in spec.axes if part.component.kind is kind}
    return next((role for (role, of), name in _LOOKS_AT_NOTHING.items() if of is kind and names == {name}), None)


def _family(spec: RunSpec) -> tuple[Any, ...]:
    kind = tried(spec)
    others = tuple(repr(part) for part in spec.axes if part.component.kind is not kind)
    return (spec.arguments.train_type, kind, others)


def _with(role: str, kind: Kind, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run with the component of a role in its place."""
    name = _LOOKS_AT_NOTHING[role, kind]
    if config.get("train_type") == COMPOSED:
        return {**config, kind.name: _axis(name, config.get(kind.name))}
    kept = {key: value for key, value in config.items() if key not in ("component", "component_name", kind.name)}
    if kind is ORDER:
        over = {key: value for key, value in (config.get(ORDER.name) or {}).items() if key == OVER}
        kept |= {ORDER.name: over} if over else {}
    if (role, kind) == (STATIC, MIXER):
        return kept | {"static_mix": True}
    return kept | {"component_name": name}


def _axis(name: str, given: Any) -> dict[str, Any]:
    """Returns an axis with another component and its turns: every, from, and what an order arranges."""
    turns = given if isinstance(given, Mapping) else {}
    return {COMPONENT: name} | {key: turns[key] for key in (EVERY, FROM, OVER) if key in turns}
