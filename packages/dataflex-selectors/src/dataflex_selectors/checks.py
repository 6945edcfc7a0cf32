"""Checks of constructor parameters: each says what is wrong with one of them, and all are reported together."""

from __future__ import annotations

import math
from typing import Any

from dataflex.core.errors import InvalidConfigError, Problem, nearest


def require(selector: str, *problems: Problem | None) -> None:
    """Raises a ConfigError that holds every problem, if there is any.

    Args:
        selector: The name of the selector.
        *problems: What the functions below returned.
    """
    found = [Problem(f"{p.where} of the {selector} selector", p.what, p.way_out) for p in problems if p is not None]
    if found:
        raise InvalidConfigError(found)


def one_of(key: str, found: Any, allowed: tuple[str, ...]) -> Problem | None:
    """Returns a problem unless ``found`` is one of ``allowed``."""
    if isinstance(found, str) and found in allowed:
        return None
    return Problem(key, f"found {found!r}, allowed: {', '.join(allowed)}", nearest(str(found), allowed))


def positive(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a finite number above 0."""
    if _is_number(found) and found > 0:
        return None
    return Problem(key, f"found {found!r}, allowed: a number above 0")


def positive_or_null(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is None or a finite number above 0."""
    if found is None or positive(key, found) is None:
        return None
    return Problem(key, f"found {found!r}, allowed: a number above 0, or null for the default")


def at_most_one(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a number in [0, 1]."""
    if _is_number(found) and 0 <= found <= 1:
        return None
    return Problem(key, f"found {found!r}, allowed: a number from 0 to 1")


def at_least_zero(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a finite number of at least 0."""
    if _is_number(found) and found >= 0:
        return None
    return Problem(key, f"found {found!r}, allowed: a number of at least 0")


def share(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a number above 0 and at most 1."""
    if _is_number(found) and 0 < found <= 1:
        return None
    return Problem(key, f"found {found!r}, allowed: a number above 0 and at most 1")


def at_least_one_or_null(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is None or a finite number of at least 1."""
    if found is None or (_is_number(found) and found >= 1):
        return None
    return Problem(key, f"found {found!r}, allowed: a number of at least 1, or null for the default")


def count(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a whole number of at least 1."""
    if isinstance(found, int) and not isinstance(found, bool) and found >= 1:
        return None
    return Problem(key, f"found {found!r}, allowed: a whole number of at least 1")


def count_or_zero(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a whole number of at least 0."""
    if isinstance(found, int) and not isinstance(found, bool) and found >= 0:
        return None
    return Problem(key, f"found {found!r}, allowed: a whole number of at least 0")


def flag(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a boolean."""
    return None if isinstance(found, bool) else Problem(key, f"found {found!r}, allowed: true, false")


def count_or_null(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is None or a whole number of at least 1."""
    if found is None or (isinstance(found, int) and not isinstance(found, bool) and found >= 1):
        return None
    return Problem(key, f"found {found!r}, allowed: a whole number of at least 1, or null for the default")


def two_shares_or_null(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is None or a list of two numbers 0 < a < b < 1."""
    if found is None:
        return None
    is_pair = isinstance(found, list | tuple) and len(found) == 2 and all(map(_is_number, found))
    if is_pair and 0 < found[0] < found[1] < 1:
        return None
    return Problem(key, f"found {found!r}, allowed: two numbers 0 < a < b < 1, or null for thirds")


def _is_number(found: Any) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
