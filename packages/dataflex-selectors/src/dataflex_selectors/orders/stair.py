"""A curriculum whose rows are folded around the borders of its sections (arXiv 2605.30334, STR).

Rows sorted by their score are cut into equal sections. Inside of a section they stay sorted; the rows up to ``ratio``
of all before and after a border are folded, as in :mod:`dataflex_selectors.orders.folding`: there the rows of both
sections are gone through several times, from the lower to the higher, which looks like a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from dataflex.core.errors import Problem
from dataflex.core.parameter_checks import between, count, require
from dataflex.core.registry import register_order
from numpy.typing import NDArray

from dataflex_selectors.orders.folding import folded
from dataflex_selectors.orders.pattern import Pattern

MOST_SECTIONS = 1000
MOST_RATIO = 0.5  # beyond it, the rows around one border are all rows already


@register_order("stair")
class StairOrder(Pattern):
    """Rows by their score, with several sweeps around the borders of sections.

    Args:
        sections: Equal parts of the sorted rows; 1 is sorting.
        ratio: Share of all rows, before a border and after it, that is swept over. From half a section on the parts
            meet, and each begins where the one before ends.
        layers: Sweeps around a border.
        **shared: ``window`` and ``ascending``; see :class:`~dataflex_selectors.orders.pattern.Pattern`.

    Raises:
        ConfigError: A parameter is out of its range.
    """

    title: ClassVar[str] = "stair order"

    def __init__(self, sections: int = 2, ratio: float = 0.225, layers: int = 3, **shared: Any) -> None:
        super().__init__(**shared)
        checks = sections_in_range("sections", sections), between("ratio", ratio, 0, MOST_RATIO)
        require(self.title, *self.problems, *checks, count("layers", layers))
        self.sections, self.ratio, self.layers = sections, float(ratio), layers

    def path(self, sorted_S: NDArray[np.signedinteger], generator: np.random.Generator) -> NDArray[np.signedinteger]:
        """Returns the rows with those around each border folded."""
        for part in around_borders(len(sorted_S), self.sections, self.ratio):
            sorted_S[part] = folded(sorted_S[part], self.layers, self.turning)
        return sorted_S


def sections_in_range(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a whole number from 1 to MOST_SECTIONS."""
    problem = count(key, found)
    if problem is not None or found <= MOST_SECTIONS:
        return problem
    return Problem(key, f"found {found!r}, allowed: a whole number from 1 to {MOST_SECTIONS}")


def around_borders(size: int, sections: int, ratio: float) -> Iterator[slice]:
    """Yields the places around each border between sections; none of them twice.

    The authors' program rounds the border k S / sections and the width ratio S, each by itself, halves to even numbers.

    Args:
        size: Rows, S.
        sections: Equal parts.
        ratio: Share of S on each side of a border.
    """
    width, end = round(size * ratio), 0
    for number in range(1, sections) if width else ():
        border = round(size * number / sections)
        start, end = max(end, border - width), min(size, border + width)
        yield slice(start, end)
