"""Names of scores of rows, as ``by:`` of an order and components give them: ``loss``, ``seen:100``, ``column:NAME``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dataflex.core.errors import Problem, nearest

LOSS = "loss"
SEEN = "seen"
LENGTH = "length"
COLUMN = "column"
FILE = "file"
REWARD = "reward"
"""Mean of the rewards of a prompt's sampled answers."""
SPREAD = f"{REWARD}:spread"
"""Their standard deviation."""
SELECTOR = "selector"
"""Of an order alone: what the run's own selector gave."""
STATIC = (LENGTH, COLUMN, FILE)
"""Those that never change while a run lasts."""

_ARGUMENTS = {LOSS: None, LENGTH: None, SEEN: "STEPS", COLUMN: "NAME", FILE: "PATH"}  # kind -> what follows the colon


@dataclass(frozen=True)
class ScoreName:
    """A name taken apart.

    Attributes:
        kind: What stands in front of the colon.
        argument: What stands behind it; blank where there is no colon.
    """

    kind: str
    argument: str = ""

    @classmethod
    def of(cls, name: str) -> ScoreName:
        """Returns the parts of a name."""
        kind, _, argument = name.partition(":")
        return cls(kind, argument)

    @property
    def changes(self) -> bool:
        """Whether the scores are others at the next update."""
        return self.kind not in STATIC


def score_name(key: str, found: Any, *others: str) -> Problem | None:
    """Returns a problem unless ``found`` names scores that every run can give. Whether a file is there is not asked.

    Args:
        key: The key or parameter.
        found: Its value.
        *others: More names that are allowed here.
    """
    shown = [*others, *(kind if what is None else f"{kind}:{what}" for kind, what in _ARGUMENTS.items())]
    allowed = f"found {found!r}, allowed: {', '.join([*shown, SEEN, REWARD, SPREAD])}"
    if not isinstance(found, str):
        return Problem(key, allowed)
    if found in others:
        return None
    name = ScoreName.of(found)
    if name.kind == REWARD:
        return None if found in (REWARD, SPREAD) else Problem(key, allowed, f"write {REWARD} or {SPREAD}")
    if name.kind not in _ARGUMENTS:
        return Problem(key, allowed, nearest(name.kind, [*others, *_ARGUMENTS, REWARD]) or "use one of these")
    what = _ARGUMENTS[name.kind]
    if what is None and ":" in found:
        return Problem(key, allowed, f"write {name.kind}")
    if name.kind in (COLUMN, FILE) and not name.argument.strip():
        return Problem(key, allowed, f"write {name.kind}:{what}")
    if name.kind == SEEN and ":" in found and not (name.argument.isdecimal() and int(name.argument) > 0):
        return Problem(key, allowed, "STEPS is a whole number of at least 1; write seen to make no pass at all")
    return None
