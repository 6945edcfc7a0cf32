"""Checks that a weighter knows the sources of the train dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.core.errors import Problem, listed, nearest
from dataflex.core.named_sources import NamedSources
from dataflex.core.parameter_checks import FLOAT32_MOST, is_number


def known_sources(dataset: Any) -> Problem | None:
    """Returns a problem unless the train dataset knows its sources."""
    if isinstance(dataset, NamedSources):
        return None
    return Problem(
        "dataset",
        f"the train dataset, {type(dataset).__name__}, does not say which source a row comes from",
        "give the trainer a mapping from source names to datasets as its train_dataset",
    )


def names_of(dataset: Any) -> tuple[str, ...]:
    """Returns the names of the sources; none where the train dataset does not know them."""
    return dataset.names if isinstance(dataset, NamedSources) else ()


def source_weights(key: str, found: Any, names: tuple[str, ...]) -> list[Problem]:
    """Returns what is wrong with a mapping from sources to weights; None is fine.

    Args:
        key: The parameter.
        found: Its value.
        names: The sources that are there; empty where they are not known.
    """
    if found is None:
        return []
    if not isinstance(found, Mapping):
        return [Problem(key, f"found {found!r}, allowed: source: weight for some or all sources, or null")]
    problems = [
        Problem(f"{key}.{name}", f"found {value!r}, allowed: a number from 0 to {FLOAT32_MOST:.3g}")
        for name, value in found.items()
        if not is_number(value) or not 0 <= value <= FLOAT32_MOST
    ]
    unknown = [str(name) for name in found if names and name not in names]
    there = f"no such source; there are {listed(names)}"
    return problems + [Problem(f"{key}.{name}", there, nearest(name, names)) for name in unknown]
