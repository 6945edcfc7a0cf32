"""Which rows have a score that they can be ranked by, and scores on a common scale.

    NaN    the row has no score: it is never taken
    -inf   never: the row is never taken
    +inf   refused: rows are ranked by numbers

Letters: N rows, M of them with a score.
"""

from __future__ import annotations

import numpy as np
from dataflex.core.errors import ComponentError, rows_named
from numpy.typing import NDArray


def scored_places(scores_N: NDArray[np.floating], rows_N: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Returns where there is a finite score: (M,) places in [0, N), ascending.

    Args:
        scores_N: (N,) scores.
        rows_N: (N,) the rows that they belong to, for the message; None where places are row numbers.

    Raises:
        ComponentError: A score is +inf.
    """
    above = np.flatnonzero(np.isposinf(scores_N))
    if len(above):
        raise ComponentError(
            f"the score of {rows_named(above if rows_N is None else rows_N[above])} is +inf, and rows are ranked by "
            "numbers -> give them a finite score; -inf means never and NaN no score"
        )
    return np.flatnonzero(np.isfinite(scores_N))


def standardised(scores_M: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns the scores less their mean, in standard deviations: (M,); 0 where all are equal.

    They may be of any size: they are first brought to [-1, 1] by a power of 2, so that no square over- or underflows.

    Args:
        scores_M: (M,) finite scores.
    """
    values_M = scores_M.astype(np.float64)
    if not len(values_M) or values_M.min() == values_M.max():
        return np.zeros(len(values_M))
    _, power = np.frexp(np.abs(values_M).max())
    values_M = np.ldexp(values_M, -power)
    values_M -= values_M.min()
    return np.asarray((values_M - values_M.mean()) / values_M.std())
