"""A curriculum whose rows go up and down around the borders of its sections (arXiv 2605.30334, SAW).

As :mod:`dataflex_selectors.orders.stair`, but every second sweep around a border goes backwards, so that no sweep
begins with a jump of the score.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from dataflex.core.parameter_checks import between, count, require
from dataflex.core.registry import register_order
from numpy.typing import NDArray

from dataflex_selectors.orders.folding import folded
from dataflex_selectors.orders.pattern import Pattern
from dataflex_selectors.orders.stair import MOST_RATIO, around_borders, sections_in_range


@register_order("saw")
class SawOrder(Pattern):
    """Rows by their score, with sweeps up and down around the borders of sections.

    Args:
        sections: Equal parts of the sorted rows; 1 is sorting.
        ratio: Share of all rows, before a border and after it, that is swept over. From half a section on the parts
            meet, and each begins where the one before ends.
        layers: Sweeps around a border.
        **shared: ``window`` and ``ascending``; see :class:`~dataflex_selectors.orders.pattern.Pattern`.

    Raises:
        ConfigError: A parameter is out of its range.
    """

    def __init__(self, sections: int = 3, ratio: float = 0.075, layers: int = 2, **shared: Any) -> None:
        super().__init__(**shared)
        checks = sections_in_range("sections", sections), between("ratio", ratio, 0, MOST_RATIO)
        require("saw order", *checks, count("layers", layers))
        self.sections, self.ratio, self.layers = sections, float(ratio), layers

    def path(self, sorted_S: NDArray[np.signedinteger], generator: np.random.Generator) -> NDArray[np.signedinteger]:
        """Returns the rows with those around each border in sweeps up and down."""
        for part in around_borders(len(sorted_S), self.sections, self.ratio):
            sorted_S[part] = folded(sorted_S[part], self.layers, turning=True)
        return sorted_S
