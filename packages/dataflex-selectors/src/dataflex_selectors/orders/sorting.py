"""Rows in the order of their scores: the plain curriculum, and its reverse."""

from __future__ import annotations

from typing import Any

import numpy as np
from dataflex.core.parameter_checks import require
from dataflex.core.registry import register_order
from numpy.typing import NDArray

from dataflex_selectors.orders.pattern import Pattern


@register_order("sorting")
class SortingOrder(Pattern):
    """Rows by their score, the lowest first.

    Args:
        **shared: ``window`` and ``ascending``; see :class:`~dataflex_selectors.orders.pattern.Pattern`.

    Raises:
        ConfigError: A parameter is out of its range.
    """

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        require("sorting order", *self.problems)

    def path(self, sorted_S: NDArray[np.signedinteger], generator: np.random.Generator) -> NDArray[np.signedinteger]:
        """Returns the rows as they are."""
        return sorted_S
