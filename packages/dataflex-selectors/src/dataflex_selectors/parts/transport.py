"""The mathematics of TSDS: a distribution over rows that lies close to the target and is spread out.

Liu, Karbasi and Rekatsinas, TSDS: Data Selection for Task-Specific Model Finetuning, NeurIPS 2024, arXiv 2410.11303.
Each of M queries spreads its mass 1/M over its nearest rows. A row takes at most 1 / (M s rho) of a query, so rows with
many near-duplicates (a large density rho) share what one of them would take, and the larger s, the wider the spread.
The optimum of

    (alpha / C) * cost of the transport  +  (1 - alpha) * distance from mass that is spread out evenly

is reached when the next row would cost more than the evenness that it adds.

Letters: M queries, K neighbours of each, N rows of the pool, U rows that are a neighbour of any query, X queries that
are named for a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from dataflex.core.explain import MOST_PULLS
from dataflex.utils.progress import Progress
from numpy.typing import NDArray

from dataflex_selectors.parts.neighbours import Search

_ROWS = 1024  # rows whose density is computed at a time


def capped(neighbours: int, size: int) -> int:
    """Returns how many neighbours to look at: at most a tenth of the pool, and at least one (section 4)."""
    return max(1, min(neighbours, size // 10))


def densities(search: Search, count: int, neighbours: int, sigma: float) -> NDArray[np.float64]:
    """Returns rho of each row: (U,), at least 1.

    Kernel density with the Epanechnikov kernel, cut off at the nearest rows: rho(x) = sum of max(0, 1 - d^2 / sigma^2)
    over the nearest rows, x itself included (section 4.3).

    Args:
        search: Finds the nearest of the U rows for the rows from first to before last.
        count: U.
        neighbours: How many rows to sum over.
        sigma: Distance at which two rows are no longer near-duplicates; 0 gives every row density 1.
    """
    if sigma == 0:
        return np.ones(count)
    rho_U = np.empty(count)
    with Progress("how densely rows lie", count) as progress:
        for first in range(0, count, _ROWS):
            last = min(first + _ROWS, count)
            distances, _ = search(first, last, neighbours)
            rho_U[first:last] = np.maximum(0, 1 - distances**2 / sigma**2).sum(axis=1)
            progress.done(last - first)
    return np.maximum(rho_U, 1.0)  # the row itself may be missing where it has more duplicates than are looked at


def transported(
    distances_MK: NDArray[np.float64], rho_MK: NDArray[np.float64], alpha: float, scale: float
) -> NDArray[np.float64]:
    """Returns the mass that each query gives to each of its neighbours: (M, K) with sum 1, each row 1/M.

    The steps of s do not depend on the query that takes them, so all of them are sorted, in place of a queue.

    Args:
        distances_MK: (M, K) distances of the neighbours, ascending.
        rho_MK: (M, K) their densities.
        alpha: Weight of the transport against the spread, in [0, 1]; 1 leaves all mass at the nearest neighbours.
        scale: C, which brings distances to the scale of the spread.
    """
    queries, k = distances_MK.shape
    if k == 1:
        return np.full((queries, 1), 1 / queries)
    filled_MK = np.cumsum(1 / rho_MK, axis=1)  # c_jk: the s from which on query j needs its neighbours up to k
    # Letting s grow past c_jk takes query j's cost from d_jk c - sum to d_j,k+1 c - sum: it rises by this much.
    rise = np.diff(distances_MK, axis=1) * filled_MK[:, :-1]
    query, rank = (grid.ravel() for grid in np.indices(rise.shape))
    order = np.lexsort((query, rank, filled_MK[:, :-1].ravel()))
    total = np.cumsum(rise.ravel()[order])
    enough = np.flatnonzero(alpha / scale * total >= (1 - alpha) * queries)
    steps = int(enough[0]) if len(enough) else len(order)
    taken = np.bincount(query[order[:steps]], minlength=queries)  # neighbours of each query that are filled up
    s = filled_MK[:, :-1].ravel()[order[min(steps, len(order) - 1)]]
    full_MK = np.arange(k) < taken[:, None]
    mass_MK = np.where(full_MK, 1 / (queries * s * rho_MK), 0.0)
    left_over = np.maximum(1 / queries - mass_MK.sum(axis=1), 0.0)
    mass_MK[np.arange(queries), taken] += left_over
    return np.asarray(mass_MK / mass_MK.sum())


@dataclass(frozen=True)
class Givers:
    """The queries that gave rows most of their mass.

    Attributes:
        queries: (U, X) their numbers, the largest giver first; -1 for none.
        shares: (U, X) what each gave, of all that the row got.
    """

    queries: NDArray[np.int64]
    shares: NDArray[np.float64]

    def at(self, places: NDArray[Any]) -> Givers:
        """Returns those of some rows."""
        return Givers(self.queries[places], self.shares[places])

    def of(self, place: int) -> list[tuple[int, float]]:
        """Returns the queries of a row with their shares."""
        pairs = zip(self.queries[place].tolist(), self.shares[place].tolist(), strict=True)
        return [(query, share) for query, share in pairs if query >= 0]


def largest_givers(
    mass_MK: NDArray[np.float64], member_MK: NDArray[np.int64], p_U: NDArray[np.float64], most: int = MOST_PULLS
) -> Givers:
    """Returns for each row the queries that gave it most: of equal ones the first.

    Args:
        mass_MK: (M, K) what each query gives to each of its neighbours.
        member_MK: (M, K) which row that is, in [0, U).
        p_U: (U,) what each row got.
        most: Queries that are named, X.
    """
    query, rank = np.nonzero(mass_MK)
    row, mass = member_MK[query, rank], mass_MK[query, rank]
    order = np.lexsort((query, -mass, row))
    query, row, mass = query[order], row[order], mass[order]
    counts_U = np.bincount(row, minlength=len(p_U))
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts_U) - counts_U, counts_U)
    named = place < most
    queries_UX, shares_UX = np.full((len(p_U), most), -1, dtype=np.int64), np.zeros((len(p_U), most))
    queries_UX[row[named], place[named]] = query[named]
    shares_UX[row[named], place[named]] = mass[named] / p_U[row[named]]
    return Givers(queries_UX, shares_UX)
