"""Checks of constructor parameters: each says what is wrong with one of them, and all are reported together.

    require("longest selector", one_of("order", order, ORDERS), count("least", least))

Every check takes the parameter's name and its value, and returns a problem with both and with what is allowed, or None.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataflex.core.errors import InvalidConfigError, Problem, nearest

_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")
FLOAT32_MOST = 2.0**128 - 2.0**104
"""The largest number that 32 bits hold, 3.4e38: more than that is infinite in a loss or a weight."""


def require(component: str, *problems: Problem | None) -> None:
    """Raises an error that holds every problem once, if there is any.

    Args:
        component: Name and kind, as in "longest selector".
        *problems: What the functions below returned.

    Raises:
        ConfigError: Each problem on a line of its own, with the component it belongs to.
    """
    different = dict.fromkeys(p for p in problems if p is not None)  # two parts of a component may check one parameter
    found = [Problem(f"{p.where} of the {component}", p.what, p.way_out) for p in different]
    if found:
        raise InvalidConfigError(found)


def stated(*problems: Problem | None) -> list[Problem | None]:
    """Returns the problems: what a base class finds, for :func:`require` in the constructor of a derived class.

    So one message holds what is wrong with the parameters of both. What a constructor hands to either of the two is
    known before the component is imported, see :mod:`dataflex.discovery.stated_checks`.

    Args:
        *problems: What the functions below returned; None for none.
    """
    return list(problems)


def one_of(key: str, found: Any, allowed: Sequence[str]) -> Problem | None:
    """Returns a problem unless ``found`` is one of ``allowed``."""
    if isinstance(found, str) and found in allowed:
        return None
    hint = nearest(str(found), allowed) or "use one of these"
    return Problem(key, f"found {found!r}, allowed: {', '.join(allowed)}", hint)


def flag(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a boolean."""
    return _unless(isinstance(found, bool), key, found, "true, false")


def text_or_null(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is None or a text that is not blank."""
    return _unless(found is None or (isinstance(found, str) and bool(found.strip())), key, found, "a text, or null")


def text(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a text that is not blank."""
    return _unless(isinstance(found, str) and bool(found.strip()), key, found, "a text")


def meant_as_path(name: str) -> bool:
    """Whether the name of a model can only be a path: that of one on a hub is a name, or an owner and a name.

    An address (``s3://...``) is neither.
    """
    return "://" not in name and (name.startswith((".", "/", "~")) or name.strip("/").count("/") > 1)


def model_or_null(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is None, or the name of a model or the folder of one that is there."""
    problem = text_or_null(key, found)
    if problem is not None or found is None or not meant_as_path(found):
        return problem
    folder = Path(found).expanduser()
    return None if folder.is_dir() else Problem(key, f"there is no folder {folder.absolute()}", "name that of a model")


def positive(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a finite number above 0."""
    return _unless(is_number(found) and found > 0, key, found, "a number above 0")


def positive_or_null(key: str, found: Any, null: str = "the default") -> Problem | None:
    """Returns a problem unless ``found`` is None, which stands for ``null``, or a finite number above 0."""
    allowed = found is None or (is_number(found) and found > 0)
    return _unless(allowed, key, found, f"a number above 0, or null for {null}")


def at_least(key: str, found: Any, least: float) -> Problem | None:
    """Returns a problem unless ``found`` is a finite number of at least ``least``."""
    return _unless(is_number(found) and found >= least, key, found, f"a number of at least {least:g}")


def at_least_or_null(key: str, found: Any, least: float, null: str = "the default") -> Problem | None:
    """Returns a problem unless ``found`` is None, which stands for ``null``, or a number of at least ``least``."""
    allowed = found is None or (is_number(found) and found >= least)
    return _unless(allowed, key, found, f"a number of at least {least:g}, or null for {null}")


def between(key: str, found: Any, low: float, high: float, exclusive: bool = False) -> Problem | None:
    """Returns a problem unless ``found`` is a number from ``low`` to ``high``; ``exclusive`` leaves ``high`` out."""
    allowed = is_number(found) and low <= found and (found < high if exclusive else found <= high)
    return _unless(allowed, key, found, f"a number from {_short(low)} {'below' if exclusive else 'to'} {_short(high)}")


def share(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a number above 0 and at most 1."""
    return _unless(is_number(found) and 0 < found <= 1, key, found, "a number above 0 and at most 1")


def share_or_null(key: str, found: Any, null: str = "the default") -> Problem | None:
    """Returns a problem unless ``found`` is None, which stands for ``null``, or a number above 0 and at most 1."""
    allowed = found is None or (is_number(found) and 0 < found <= 1)
    return _unless(allowed, key, found, f"a number above 0 and at most 1, or null for {null}")


def count(key: str, found: Any, least: int = 1) -> Problem | None:
    """Returns a problem unless ``found`` is a whole number of at least ``least``."""
    return _unless(_is_count(found, least), key, found, f"a whole number of at least {least}")


def count_or_null(key: str, found: Any, null: str = "the default") -> Problem | None:
    """Returns a problem unless ``found`` is None, which stands for ``null``, or a whole number of at least 1."""
    return _unless(
        found is None or _is_count(found, 1), key, found, f"a whole number of at least 1, or null for {null}"
    )


def idle(key: str, found: Any, default: Any, heeded: bool, needs: str) -> Problem | None:
    """Returns a problem if a parameter was given another value than its default and nothing looks at it.

    Args:
        key: The parameter.
        found: Its value.
        default: Its default, which a preset may well write out.
        heeded: Whether it has an effect with the other parameters.
        needs: With which it would have one, as in ``reward: eval_loss``.
    """
    if heeded or found == default:
        return None
    return Problem(key, f"found {found!r}, which has no effect without {needs}", f"remove it, or set {needs}")


def is_number(found: Any) -> bool:
    """Returns whether ``found`` is a number that a float can hold, and no boolean."""
    return isinstance(found, int | float) and not isinstance(found, bool) and abs(found) <= sys.float_info.max


def _short(number: float) -> str:
    return f"{number:.0f}" if number == int(number) and abs(number) < 1e9 else f"{number:g}"


def _is_count(found: Any, least: int) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and found >= least


def _unless(allowed: bool, key: str, found: Any, what: str) -> Problem | None:
    if allowed:
        return None
    quoted = isinstance(found, str) and "number" in what and _NUMBER.fullmatch(found) is not None
    return Problem(key, f"found {found!r}, allowed: {what}", "remove the quotes" if quoted else "")
