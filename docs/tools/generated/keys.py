"""Every key that dataflex adds to a YAML: default, meaning, and what the checks allow, in the words of the checks."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from dataflex.config.arguments import COMPOSED, DataflexArguments
from dataflex.config.axis_keys import AXES, keys_of
from dataflex.config.checks.keys import parse_arguments
from dataflex.core.kinds import KINDS

from generated.markdown import table

_WRONG = (-2, 0.5, "", "no such value", [], 3)
"""Values of which each key refuses one at least, and then says what it allows."""

TEXT = """# Keys

A run is a LLaMA-Factory YAML with these keys. Every other key is LLaMA-Factory's. [Configuration](../configuration.md)
explains them, with the arithmetic of the schedule and the checks of the whole file. Steps are optimizer steps of the
whole run.

"""


def page() -> str:
    """Returns the page."""
    rows = [
        (f"`{field.name}`", _default(field.default), field.metadata["doc"], allowed(field.name))
        for field in fields(DataflexArguments)
    ]
    text = TEXT + table(("key", "default", "meaning", "allowed"), rows)
    text += "\n## Keys of an axis\n\nWith `train_type: dynamic`, each axis is a name or a mapping with these keys:\n\n"
    axes = [(f"`{kind.name}`", ", ".join(f"`{key}`" for key in keys_of(kind))) for kind in KINDS]
    return text + table(("axis", "keys of its mapping"), axes)


def allowed(key: str) -> str:
    """Returns what a key may be, as the check says it of a wrong value.

    Raises:
        ValueError: The check takes every wrong value, so that a new key needs a value here that it refuses.
    """
    given = {"train_type": COMPOSED} if key in AXES else {}
    for wrong in _WRONG:
        _, problems = parse_arguments({**given, key: wrong}, Path())
        said = [problem.what.partition("allowed: ")[2] for problem in problems if problem.where == key]
        if said and said[0]:
            return said[0]
    raise ValueError(f"{key}: none of {_WRONG} is refused with what is allowed")


def _default(value: object) -> str:
    return "none" if value in (None, ()) else f"`{str(value).lower()}`"
