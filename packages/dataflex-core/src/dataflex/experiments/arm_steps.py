"""How a run is made longer or shorter: warm-up and steps between updates in proportion, as many updates as before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.config.arguments import DataflexArguments
from dataflex.config.axis_keys import AXES, FROM
from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError

_LENGTH = ("max_steps", "num_train_epochs", "train_step")
LENGTHS = frozenset({*_LENGTH, "warmup_step", "update_step", *AXES})
"""Keys that change with the length of a run; of an axis, where it begins."""


def total_steps(spec: RunSpec) -> int | None:
    """Returns the optimizer steps of a run; None where they are passes over rows that nobody has counted."""
    max_steps = spec.llamafactory.get("max_steps")
    return spec.steps(max_steps if isinstance(max_steps, int) and not isinstance(max_steps, bool) else 0).total


def steps_in_words(spec: RunSpec) -> str:
    """Returns how long a run is, as a table says it."""
    total = total_steps(spec)
    return f"{spec.steps().epochs:g} epochs" if total is None else f"{total} steps"


def as_static(config: Mapping[str, Any], total: int | None) -> dict[str, Any]:
    """Returns a run of the same length without anything dynamic.

    Args:
        config: A run.
        total: Its steps; None where ``num_train_epochs`` says how long it is.
    """
    ours = {*DataflexArguments.names(), "max_steps"}
    kept = {key: value for key, value in config.items() if key not in ours}
    if total is None:
        return {"train_type": "static"} | kept
    return {"train_type": "static"} | without_length(kept) | {"max_steps": total}


def without_length(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration without the keys that say outright how long a run is."""
    return {key: value for key, value in config.items() if key not in _LENGTH}


def with_total(config: Mapping[str, Any], spec: RunSpec, before: int, total: int, who: str) -> dict[str, Any]:
    """Returns a run with another number of steps.

    Args:
        config: The run.
        spec: The same, checked.
        before: Its steps.
        total: Those that it is to have.
        who: The arm, for the message.

    Raises:
        ConfigError: Its updates do not fit into so few steps.
    """
    if not spec.arguments.dynamic:
        return without_length(config) | {"max_steps": total}
    a, steps, share = spec.arguments, spec.steps(), total / before
    cycle = max(1, round(total / steps.epochs)) if steps.repeats else total
    keys: dict[str, Any] = {}
    warmup, times = round(a.warmup_step * share), a.update_times
    if times > 0 and a.update_step > 0:
        if cycle < times + (a.warmup_step > 0):
            raise ConfigError(
                f"{who}: {cycle} steps are left to it, and it has {times} updates -> make the base longer, or give it "
                "fewer updates"
            )
        warmup = min(warmup, cycle - times)
        keys["update_step"] = (cycle - warmup) // times
    elif a.update_step > 0:
        keys["update_step"] = max(1, round(a.update_step * share))
    if a.warmup_step or steps.repeats:
        keys["warmup_step"] = warmup
    if steps.repeats:  # a total would end the repetition: the warm-up takes what does not go into equal stretches
        kept = {key: value for key, value in config.items() if key not in ("max_steps", "train_step")}
        return kept | keys | {"warmup_step": cycle - keys["update_step"] * times}
    axes = {key: _later(config[key], share) for key in AXES if config.get(key) is not None}
    return without_length(config) | axes | keys | {"train_step": total}


def _later(axis: Any, share: float) -> Any:
    """Returns an axis whose parts begin in proportion."""
    if isinstance(axis, list | tuple):
        return [_later(part, share) for part in axis]
    if isinstance(axis, Mapping) and isinstance(axis.get(FROM), int):
        return {**axis, FROM: round(axis[FROM] * share)}
    return axis


def lengths_in_words(config: Mapping[str, Any]) -> str:
    """Returns the keys by which the length of a run was changed, as in ``warmup_step 8, update_step 9``."""
    keys = ("warmup_step", "update_step", "update_times", "train_step", "max_steps")
    return ", ".join(f"{key} {config[key]}" for key in keys if config.get(key) is not None)
