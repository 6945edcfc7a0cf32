"""Rows of the lowest scores first and of the highest last, all others between them at random (arXiv 2605.30334, SEG).

Only the ends of training are decided by the scores; inside of each of the three parts the rows are shuffled.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from dataflex.core.errors import Problem
from dataflex.core.parameter_checks import between, is_number, one_of, require
from dataflex.core.registry import register_order
from numpy.typing import NDArray

from dataflex_selectors.orders.pattern import Pattern

ENDS = ("opposite", "same")


@register_order("segment")
class SegmentOrder(Pattern):
    """Rows of one end of the scores first, of the other end last, all others at random between them.

    Args:
        front: Share of the rows that come first, those of the lowest scores; rounded down.
        back: Share of the rows that come last, those of the highest scores; rounded down.
        ends: ``opposite``, or ``same``: the last rows, too, are of the lowest scores.
        **shared: ``window`` and ``ascending``; see :class:`~dataflex_selectors.orders.pattern.Pattern`. ``ascending:
            false`` takes the highest scores for the lowest.

    Raises:
        ConfigError: A parameter is out of its range, or ``front`` and ``back`` are more than all rows.
    """

    def __init__(self, front: float = 0.1, back: float = 0.1, ends: str = "opposite", **shared: Any) -> None:
        super().__init__(**shared)
        shares = between("front", front, 0, 1), between("back", back, 0, 1), at_most_all(front, back)
        require("segment order", *self.problems, *shares, one_of("ends", ends, ENDS))
        self.front, self.back, self.ends = float(front), float(back), ends

    def path(self, sorted_S: NDArray[np.signedinteger], generator: np.random.Generator) -> NDArray[np.signedinteger]:
        """Returns the three parts, each shuffled."""
        size = len(sorted_S)
        front, back = share_of(size, self.front), share_of(size, self.back)
        if self.ends == "same":  # which of the rows of that end come first and which last is drawn
            generator.shuffle(sorted_S[: front + back])
            sorted_S[front:] = np.roll(sorted_S[front:], -back)
        for part in (slice(0, front), slice(front, size - back), slice(size - back, size)):
            generator.shuffle(sorted_S[part])
        return sorted_S


def share_of(size: int, share: float) -> int:
    """Returns a share of ``size`` rows, rounded down: of 100 rows 0.29 are 29, where floats would give 28."""
    return int(size * Fraction(repr(share)))


def at_most_all(front: Any, back: Any) -> Problem | None:
    """Returns a problem where both shares together are more than all rows."""
    if not (is_number(front) and is_number(back)) or Fraction(repr(front)) + Fraction(repr(back)) <= 1:
        return None
    return Problem("front and back", f"found {front!r} and {back!r}, allowed: at most 1 together", "lower one of them")
