"""Scores over the updates of a run: each adds a term, and fades those before it.

Letters: N rows, P of them scored at an update, J target sets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_TINY = float(np.finfo(np.float64).tiny)  # below it numbers lose digits, and a ratio of two its meaning


class RunningScores:
    """Averages of scores, weighted by learning rate and age. Not every update scores every row, or for every set.

    After updates at the learning rates r_1 ... r_t, of which a row was scored at some, with scores s_u,

        average = sum_u decay^(t - u) r_u s_u / sum_u decay^(t - u) r_u

    The age of a term counts all updates since, whether they scored the row or not.

    Args:
        rows: N.
        sets: J.
        decay: What an update leaves of the terms before it; 1 sums them up, 0 forgets them.
    """

    def __init__(self, rows: int, sets: int, decay: float) -> None:
        self._decay = decay
        self._rates_NJ: NDArray[np.float64] = np.zeros((rows, sets))
        self._sums_NJ: NDArray[np.float64] = np.zeros((rows, sets))

    def add(
        self, pool_P: NDArray[np.int64], sets: list[int], scores: NDArray[np.floating[Any]], rate: float
    ) -> NDArray[np.float64]:
        """Fades the terms of all rows, adds those of an update and returns the averages: (P, J).

        Args:
            pool_P: (P,) rows that were scored.
            sets: The sets that they were scored for.
            scores: (P, len(sets)) their scores. One that is no finite number adds nothing.
            rate: The learning rate; the averages have it as their weight.

        Returns:
            NaN for a row that never had a score, minus infinity for a set that no update has scored it for.
        """
        rate = max(rate, 1e-30)  # at the start of a warm-up it is 0, and there must be an average
        with np.errstate(under="ignore"):
            self._rates_NJ *= self._decay
            self._sums_NJ *= self._decay
        forgotten_NJ = self._rates_NJ < _TINY
        self._rates_NJ[forgotten_NJ] = self._sums_NJ[forgotten_NJ] = 0.0
        known = np.isfinite(scores)
        rates_PJ, sums_PJ = self._rates_NJ[pool_P], self._sums_NJ[pool_P]
        rates_PJ[:, sets] += np.where(known, rate, 0.0)
        sums_PJ[:, sets] += rate * np.where(known, scores, 0.0)
        self._rates_NJ[pool_P], self._sums_NJ[pool_P] = rates_PJ, sums_PJ
        averages_PJ = np.divide(sums_PJ, rates_PJ, out=np.full_like(sums_PJ, -np.inf), where=rates_PJ > 0)
        averages_PJ[(rates_PJ == 0).all(axis=1)] = np.nan
        return averages_PJ

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums."""
        return {"rates": self._rates_NJ, "sums": self._sums_NJ}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._rates_NJ, self._sums_NJ = np.array(state["rates"]), np.array(state["sums"])
