"""Rows in a random order, whatever they are: what every other order must beat at equal rows."""

from __future__ import annotations

import numpy as np
from dataflex.core.context import UpdateContext
from dataflex.core.registry import register_order
from dataflex.core.stable_sort import position_type
from dataflex.interfaces.order import Order
from numpy.typing import NDArray


@register_order("shuffle")
class ShuffleOrder(Order):
    """Rows in a random order, another one at each update."""

    needs_scores = False

    def arrange(self, scores: NDArray[np.float64], *, context: UpdateContext) -> NDArray[np.integer]:
        """Returns a random permutation. See the base class."""
        return shuffled(len(scores), self.generator(context.update))


def shuffled(size: int, generator: np.random.Generator) -> NDArray[np.signedinteger]:
    """Returns 0 to ``size`` - 1 in a random order: (size,)."""
    rows_S: NDArray[np.signedinteger] = np.arange(size, dtype=position_type(size))
    generator.shuffle(rows_S)
    return rows_S
