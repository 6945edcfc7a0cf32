r"""``${...}`` in a component's parameters: no variable is replaced there, so a text that names one is refused.

Where such a text is meant as it stands, in the prompt of a judge say, ``\${`` is written for ``${``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from dataflex.core.errors import Problem
from dataflex.utils.secret_values import masked

_VARIABLE = re.compile(r"(?<!\\)\$\{")


def variable_problems(params: Any, where: str) -> list[Problem]:
    """Returns a problem for each text in the parameters of a component that holds ``${``.

    Args:
        params: The parameters.
        where: What stands before each in messages.
    """
    return [
        Problem(
            place,
            f"found {masked(text, *place.split('.'))!r}, and variables are not replaced here",
            "write the value itself, or '\\${' where the text is meant as it stands",
        )
        for place, text in named_variables(params, where)
    ]


def named_variables(value: Any, where: str) -> list[tuple[str, str]]:
    """Returns (key, text) of each text in a parameter that holds ``${``, keys joined with dots after ``where``."""
    match value:
        case str():
            return [(where, value)] if _VARIABLE.search(value) else []
        case dict():
            return [found for key, item in value.items() for found in named_variables(item, f"{where}.{key}")]
        case list():
            return [found for i, item in enumerate(value) for found in named_variables(item, f"{where}.{i}")]
    return []


def unescaped(value: Any) -> Any:
    r"""Returns a parameter with ``\${`` as ``${``: what is meant by what stands in a file."""
    return _each_text(value, lambda text: text.replace("\\${", "${"))


def escaped(value: Any) -> Any:
    """Returns a parameter as it is written into a file: the reverse of :func:`unescaped`."""
    return _each_text(value, lambda text: text.replace("${", "\\${"))


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    match value:
        case str():
            return change(value)
        case dict():
            return {key: _each_text(item, change) for key, item in value.items()}
        case list() | tuple():
            return [_each_text(item, change) for item in value]
    return value
