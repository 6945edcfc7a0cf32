"""What orders do about rows without a score: they come last, as they stand, and the log says so once."""

from __future__ import annotations

from abc import ABC

import numpy as np
from dataflex.interfaces.order import Order
from dataflex.utils.logging import logger
from numpy.typing import NDArray


class ScoredOrder(Order, ABC):
    """Base of orders that look at scores."""

    _warned = False

    def scored(self, scores_S: NDArray[np.float64]) -> int:
        """Returns how many rows have a score. Warns the first time that one has none.

        Args:
            scores_S: (S,) scores; NaN for none.
        """
        size = len(scores_S)
        missing = int(np.count_nonzero(np.isnan(scores_S)))
        if missing and not self._warned:
            self._warned = True
            logger.warning(
                "order %s: %d of %d rows have no score (NaN); such rows are trained on last, in their own order; this "
                "is said once",
                self.name,
                missing,
                size,
            )
        return size - missing
