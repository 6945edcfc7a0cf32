"""Checks of constructor parameters: each says what is wrong with one of them, and all are reported together."""

from __future__ import annotations

import math
from typing import Any

from dataflex.core.errors import InvalidConfigError, Problem, nearest


def require(weighter: str, *problems: Problem | None) -> None:
    """Raises a ConfigError that holds every problem, if there is any.

    Args:
        weighter: The name of the weighter.
        *problems: What the functions below returned.
    """
    found = [Problem(f"{p.where} of the {weighter} weighter", p.what, p.way_out) for p in problems if p is not None]
    if found:
        raise InvalidConfigError(found)


def one_of(key: str, found: Any, allowed: tuple[str, ...]) -> Problem | None:
    """Returns a problem unless ``found`` is one of ``allowed``."""
    if isinstance(found, str) and found in allowed:
        return None
    return Problem(key, f"found {found!r}, allowed: {' | '.join(allowed)}", nearest(str(found), allowed))


def positive(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a finite number above 0."""
    return (
        None if is_number(found) and found > 0 else Problem(key, f"found {found!r}, allowed: a finite number above 0")
    )


def positive_or_null(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is None or a finite number above 0."""
    if found is None or positive(key, found) is None:
        return None
    return Problem(key, f"found {found!r}, allowed: a finite number above 0, or null")


def at_least_zero(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a finite number of at least 0."""
    return (
        None if is_number(found) and found >= 0 else Problem(key, f"found {found!r}, allowed: a number of at least 0")
    )


def at_most_one(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a number in [0, 1]."""
    if is_number(found) and 0 <= found <= 1:
        return None
    return Problem(key, f"found {found!r}, allowed: a number from 0 to 1")


def below_one(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a number from 0 to below 1."""
    if is_number(found) and 0 <= found < 1:
        return None
    return Problem(key, f"found {found!r}, allowed: a number of at least 0 and below 1")


def count(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a whole number of at least 1."""
    if isinstance(found, int) and not isinstance(found, bool) and found >= 1:
        return None
    return Problem(key, f"found {found!r}, allowed: a whole number of at least 1")


def count_or_null(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is None or a whole number of at least 1."""
    if found is None or count(key, found) is None:
        return None
    return Problem(key, f"found {found!r}, allowed: a whole number of at least 1, or null for all")


def flag(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a boolean."""
    return None if isinstance(found, bool) else Problem(key, f"found {found!r}, allowed: true, false")


def is_number(found: Any) -> bool:
    """Returns whether ``found`` is a finite int or float."""
    return isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
