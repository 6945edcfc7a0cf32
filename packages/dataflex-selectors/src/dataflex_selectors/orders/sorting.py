"""Rows in the order of their scores: the plain curriculum, and its reverse."""

from __future__ import annotations

import numpy as np
from dataflex.core.registry import register_order
from numpy.typing import NDArray

from dataflex_selectors.orders.pattern import Pattern


@register_order("sorting")
class SortingOrder(Pattern):
    """Rows by their score, the lowest first.

    Args:
        window: Rows of a window that are shuffled; 0 and 1 shuffle nothing.
        ascending: The lowest score first; False: the highest.

    Raises:
        ConfigError: A parameter is out of its range.
    """

    def path(self, sorted_S: NDArray[np.signedinteger], generator: np.random.Generator) -> NDArray[np.signedinteger]:
        """Returns the rows as they are."""
        return sorted_S
