"""The rows that a selector chooses from at an update, where scoring all of them would take too long."""

from __future__ import annotations

import numpy as np
from dataflex.core.permutation import RowOrder
from numpy.typing import NDArray


def candidate_rows(size: int, candidates: int | None, generator: np.random.Generator) -> NDArray[np.int64]:
    """Returns ``candidates`` rows drawn without replacement, in the order of the dataset; all where None or too many.

    Args:
        size: Rows of the dataset.
        candidates: How many to draw.
        generator: The source of randomness.
    """
    if candidates is None or candidates >= size:
        return np.arange(size, dtype=np.int64)
    return np.sort(RowOrder(size, int(generator.integers(2**63))).take(0, candidates))
