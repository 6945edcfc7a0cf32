"""Sweeps over all scores that go up and down in turn, without a jump between two of them (arXiv 2605.30334, ZIG)."""

from __future__ import annotations

from typing import Any

import numpy as np
from dataflex.core.parameter_checks import count, require
from dataflex.core.registry import register_order
from numpy.typing import NDArray

from dataflex_selectors.orders.folding import folded
from dataflex_selectors.orders.pattern import Pattern


@register_order("zigzag")
class ZigzagOrder(Pattern):
    """Rows in several sweeps, from the lowest score to the highest and back in turn.

    Args:
        layers: How many sweeps; 1 is sorting.
        **shared: ``window`` and ``ascending``; see :class:`~dataflex_selectors.orders.pattern.Pattern`.

    Raises:
        ConfigError: A parameter is out of its range.
    """

    def __init__(self, layers: int = 5, **shared: Any) -> None:
        super().__init__(**shared)
        require("zigzag order", count("layers", layers))
        self.layers = layers

    def path(self, sorted_S: NDArray[np.signedinteger], generator: np.random.Generator) -> NDArray[np.signedinteger]:
        """Returns one sweep after the other, every second one backwards."""
        return folded(sorted_S, self.layers, turning=True)
