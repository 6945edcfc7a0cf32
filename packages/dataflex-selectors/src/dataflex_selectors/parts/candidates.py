"""The rows that a selector chooses from at an update, where scoring all of them would take too long; their scores."""

from __future__ import annotations

from typing import Any

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


def scores_of_all(
    size: int, rows_P: NDArray[np.int64], scores_P: NDArray[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """Returns the scores of the candidates where their rows stand: (size,), NaN for the others. For the record.

    Args:
        size: Rows of the dataset.
        rows_P: (P,) the candidates.
        scores_P: (P,) their scores.
    """
    if len(rows_P) == size and bool((rows_P[:-1] < rows_P[1:]).all()):
        return scores_P
    scores_N = np.full(size, np.nan)
    scores_N[rows_P] = scores_P
    return scores_N
