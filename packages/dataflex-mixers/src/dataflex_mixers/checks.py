"""Checks of constructor parameters: each says what is wrong with one of them, and all are reported together."""

from __future__ import annotations

import math
from typing import Any

from dataflex.core.errors import InvalidConfigError, Problem, nearest


def require(mixer: str, *problems: Problem | None) -> None:
    """Raises a ConfigError that holds every problem, if there is any.

    Args:
        mixer: The name of the mixer.
        *problems: What the functions below returned.
    """
    found = [Problem(f"{p.where} of the {mixer} mixer", p.what, p.way_out) for p in problems if p is not None]
    if found:
        raise InvalidConfigError(found)


def one_of(key: str, found: Any, allowed: tuple[str, ...]) -> Problem | None:
    """Returns a problem unless ``found`` is one of ``allowed``."""
    if isinstance(found, str) and found in allowed:
        return None
    return Problem(key, f"found {found!r}, allowed: {', '.join(allowed)}", nearest(str(found), allowed))


def positive(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a finite number above 0."""
    if is_number(found) and found > 0:
        return None
    return Problem(key, f"found {found!r}, allowed: a number above 0")


def between(key: str, found: Any, low: float, high: float, exclusive: bool = False) -> Problem | None:
    """Returns a problem unless ``found`` is a number from ``low`` to ``high``; ``exclusive`` leaves ``high`` out."""
    if is_number(found) and low <= found and (found < high if exclusive else found <= high):
        return None
    end = "below" if exclusive else "to"
    return Problem(key, f"found {found!r}, allowed: a number from {low:g} {end} {high:g}")


def count(key: str, found: Any, least: int = 1) -> Problem | None:
    """Returns a problem unless ``found`` is a whole number of at least ``least``."""
    if isinstance(found, int) and not isinstance(found, bool) and found >= least:
        return None
    return Problem(key, f"found {found!r}, allowed: a whole number of at least {least}")


def flag(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a boolean."""
    return None if isinstance(found, bool) else Problem(key, f"found {found!r}, allowed: true, false")


def text_or_null(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is None or a text that is not blank."""
    if found is None or (isinstance(found, str) and found.strip()):
        return None
    return Problem(key, f"found {found!r}, allowed: a text, or null for none")


def is_number(found: Any) -> bool:
    """Returns whether ``found`` is a finite number and no boolean."""
    return isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
