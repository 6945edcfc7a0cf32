"""Which of LLaMA-Factory's keys may be null, and what ``key=null`` on the command line does to the others.

A key that may be null is given as null, as LLaMA-Factory would give it. One that may not is taken out of the run, so
that its default holds: nothing else can be meant, and a key of a file cannot be removed from the command line in
another way. A run that is left to LLaMA-Factory's next trainer has other keys: nothing is taken out of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dataflex.config.declared_values import OPEN, declared_value
from dataflex.config.known_keys import handed_on

_NULL_IS_OFF = frozenset({
    "max_steps", "model_revision", "offload_folder", "project", "length_column_name", "eval_delay",
})  # fmt: skip
"""Keys that may be null though they do not say so, as a switch may be; ``max_steps`` is left out by dataflex then."""

_NULLS = frozenset({"null", "Null", "NULL", "~"})
"""Null in YAML. Nothing at all is null too, and is left to be refused: ``key=$NAME`` with a NAME that is not set."""


def may_be_null(key: str) -> bool:
    """Returns whether LLaMA-Factory takes null for a key; True for one of which nothing is known."""
    declared = declared_value(key)
    return declared is None or not declared.types.isdisjoint({OPEN, "none", "bool"}) or key in _NULL_IS_OFF


def without_unset(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Returns a run's configuration without the keys that ``key=null`` unsets.

    Args:
        config: Overrides applied. A null of the file stays where no override wrote it.
        overrides: ``key=value``; of several for one key the last holds.
    """
    if handed_on(config.get("train_type") or "static"):
        return dict(config)
    last = {key: value.strip() for key, _, value in (text.partition("=") for text in overrides)}
    unset = {key for key, value in last.items() if value in _NULLS and not may_be_null(key)}
    return {key: value for key, value in config.items() if key not in unset}
