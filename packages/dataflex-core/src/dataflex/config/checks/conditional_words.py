"""``WHAT if PARAMETER=VALUE``: how a class says in a text what it needs, always or with some parameters alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dataflex.core.errors import ConfigError, listed

_PART = re.compile(r"(?P<what>[a-z_ -]+?)(?: if (?P<key>\w+)(?:=(?P<value>\w+))?)?")


def holding(name: str, text: str, allowed: Sequence[str], params: Mapping[str, Any]) -> list[str]:
    """Returns what a class needs with these parameters, in the order of its text.

    Args:
        name: The attribute of the class.
        text: As the class says it: ``WHAT``, ``WHAT if KEY`` where the parameter is given, or ``WHAT if KEY=VALUE``,
            with the value as YAML writes it; or several of these with a comma between them.
        allowed: What may be needed.
        params: Its parameters, defaults included.

    Raises:
        ConfigError: It says something else, which nothing would ever look at.
    """
    return list(_holding(name, text, allowed, params))


def _holding(name: str, text: str, allowed: Sequence[str], params: Mapping[str, Any]) -> Iterator[str]:
    for part in text.split(",") if text else []:
        said = part.strip()
        found = _PART.fullmatch(said)
        if found is None or found["what"] not in allowed:
            raise ConfigError(
                f"{name}: found '{said}', allowed: {listed(allowed)}, each with 'if PARAMETER' or 'if PARAMETER=VALUE' "
                f"behind it -> name one in the class, or leave {name} out"
            )
        key, value = found["key"], found["value"]
        if key is not None and key not in params:
            raise ConfigError(
                f"{name}: found '{said}', allowed behind 'if': {listed(params)} -> name one of its parameters"
            )
        given = True if key is None else params[key]
        shown = str(given).lower() if isinstance(given, bool) else str(given)
        holds = given is not None if value is None else shown == value
        if holds:
            yield found["what"]
