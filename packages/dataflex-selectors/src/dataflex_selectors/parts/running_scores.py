"""Scores over the updates of a run: each update adds a term and lowers the weight of earlier terms.

Letters: P rows scored at an update, S rows scored at some update so far, J target sets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_TINY = float(np.finfo(np.float64).tiny)  # below it numbers lose digits, and a ratio of two is wrong


class RunningScores:
    """Averages of scores, weighted by learning rate and age. An update may score some rows for some sets.

    After updates at the learning rates r_1 ... r_t, of which a row was scored at some, with scores s_u,

        average = sum_u decay^(t - u) r_u s_u / sum_u decay^(t - u) r_u

    The age of a term counts all updates since, whether they scored the row or not.

    Only rows that were scored take memory: of 100 million rows that may be a few thousand.

    Args:
        sets: J.
        decay: Factor on the earlier terms at each update; 1 sums them up, 0 forgets them.
    """

    def __init__(self, sets: int, decay: float) -> None:
        self._decay = decay
        self._rows_S: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # ascending
        self._rates_SJ: NDArray[np.float64] = np.zeros((0, sets))
        self._sums_SJ: NDArray[np.float64] = np.zeros((0, sets))

    def add(
        self, pool_P: NDArray[np.int64], sets: list[int], scores: NDArray[np.floating[Any]], rate: float
    ) -> NDArray[np.float64]:
        """Multiplies the terms of all rows by ``decay``, adds those of an update and returns the averages: (P, J).

        Args:
            pool_P: (P,) rows that were scored, no row twice.
            sets: The sets that they were scored for.
            scores: (P, len(sets)) their scores. One that is no finite number adds nothing.
            rate: The learning rate; the averages have it as their weight.

        Returns:
            NaN for a row that never had a score, minus infinity for a set that no update has scored it for.
        """
        rate = max(rate, 1e-30)  # at the start of a warm-up it is 0, and there must be an average
        with np.errstate(under="ignore"):
            self._rates_SJ *= self._decay
            self._sums_SJ *= self._decay
        forgotten_SJ = self._rates_SJ < _TINY
        self._rates_SJ[forgotten_SJ] = self._sums_SJ[forgotten_SJ] = 0.0
        places_P = self._places(pool_P)
        known = np.isfinite(scores)
        rates_PJ, sums_PJ = self._rates_SJ[places_P], self._sums_SJ[places_P]
        rates_PJ[:, sets] += np.where(known, rate, 0.0)
        sums_PJ[:, sets] += rate * np.where(known, scores, 0.0)
        self._rates_SJ[places_P], self._sums_SJ[places_P] = rates_PJ, sums_PJ
        averages_PJ = np.divide(sums_PJ, rates_PJ, out=np.full_like(sums_PJ, -np.inf), where=rates_PJ > 0)
        averages_PJ[(rates_PJ == 0).all(axis=1)] = np.nan
        return averages_PJ

    def best_sets(self, rows_P: NDArray[np.int64], sets: list[int], found_PJ: NDArray[np.float64]) -> NDArray[np.int64]:
        """Returns the place in ``sets`` of the one with each row's highest average: (P,). Changes nothing.

        Args:
            rows_P: (P,) rows, scored at some update or not.
            sets: The sets to choose among.
            found_PJ: (P, len(sets)) what decides for a row that none of them was scored for.
        """
        places_P = np.searchsorted(self._rows_S, rows_P)
        known_P = places_P < len(self._rows_S)
        known_P[known_P] = self._rows_S[places_P[known_P]] == rows_P[known_P]
        averages_PJ = np.full(found_PJ.shape, -np.inf)
        rates, sums = (of_SJ[places_P[known_P]][:, sets] for of_SJ in (self._rates_SJ, self._sums_SJ))
        averages_PJ[known_P] = np.divide(sums, rates, out=np.full_like(sums, -np.inf), where=rates > 0)
        unknown_P = ~np.isfinite(averages_PJ).any(axis=1)
        averages_PJ[unknown_P] = np.nan_to_num(found_PJ[unknown_P], nan=-np.inf)
        return np.asarray(averages_PJ.argmax(axis=1))

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums."""
        return {"rows": self._rows_S, "rates": self._rates_SJ, "sums": self._sums_SJ}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned; that of an earlier version had sums of all rows."""
        self._rates_SJ, self._sums_SJ = np.array(state["rates"]), np.array(state["sums"])
        self._rows_S = np.array(state.get("rows", range(len(self._rates_SJ))), dtype=np.int64)

    def _places(self, pool_P: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns where the rows stand among those that have sums, after making room for the new ones: (P,)."""
        if np.array_equal(pool_P, self._rows_S):
            return np.arange(len(pool_P))
        places_P = np.searchsorted(self._rows_S, pool_P)
        known_P = places_P < len(self._rows_S)
        known_P[known_P] = self._rows_S[places_P[known_P]] == pool_P[known_P]
        if known_P.all():
            return places_P
        rows_S = np.union1d(self._rows_S, pool_P[~known_P])
        before = np.searchsorted(rows_S, self._rows_S)
        sums = []
        for old_SJ in (self._rates_SJ, self._sums_SJ):
            new_SJ = np.zeros((len(rows_S), old_SJ.shape[1]))
            new_SJ[before] = old_SJ
            sums.append(new_SJ)
        self._rows_S, (self._rates_SJ, self._sums_SJ) = rows_S, sums
        return np.searchsorted(rows_S, pool_P)
