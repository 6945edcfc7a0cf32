"""The mixture: which source each row of the next stretch comes from.

The train dataset is the concatenation of the sources, each tokenised once; a mixture is a plan of row numbers into it.
Counts per source are the planned share of the segment by largest remainder. What rounding took from a source is owed to
it and decides the next ties, so a source whose share is below one row per segment is still seen.

Inside a source, rows come without replacement, reshuffled each time it is exhausted, and in this order they are trained
on: the state of that is one position per source. Streams, which can only be read forwards, are numbered in the order of
reading. Sources are interleaved evenly: with a share p, each row of a source stands at a random place inside its own
1 / p places of training, over the borders of segments too. So while the shares stand, a source has had its share of the
rows trained on to within a few rows at any step, and where the shares are the sizes, a pass over the mixture ends for
all sources at once.

Rejected: shuffling the rows of a segment, which mixes the passes of a source, so that a row comes a third time before
another came once; shuffling the places of the sources in it, after which a pass ends for one source long after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dataflex.config.mixture_sources import never_seen
from dataflex.core.component import seeded
from dataflex.core.errors import CheckpointError, ComponentError, ConfigError
from dataflex.core.permutation import Permutation, ReadingOrder, RowOrder

MANY = 5
"""Sources that a log line names at most."""


def largest_remainder(shares_K: NDArray[np.float64], total: int, owed_K: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns how many of ``total`` rows each source gets: floor of its share, or one more.

    Args:
        shares_K: (K,) shares that sum to 1.
        total: Rows to divide.
        owed_K: (K,) rows that rounding has taken from each source so far; larger goes first.

    Returns:
        (K,) counts that sum to ``total``; a source with share 0 gets none.
    """
    exact_K = shares_K * total
    counts_K = np.floor(exact_K).astype(np.int64)
    rank_K = np.where(shares_K > 0, exact_K - counts_K + owed_K, -np.inf)
    counts_K[np.argsort(-rank_K, kind="stable")[: total - int(counts_K.sum())]] += 1
    return counts_K


@dataclass(frozen=True)
class Division:
    """A segment, divided among the sources.

    Attributes:
        counts: (K,) rows of each source.
        order: (S,) where each row of the segment stands in the rows of the sources, one source after the other.
    """

    counts: NDArray[np.int64]
    order: NDArray[np.int64]


class MixtureManager:
    """The sources of a mixed run and their current proportions.

    Args:
        names: (K) names of the sources.
        sizes: (K,) rows of each.
        proportions: (K,) initial shares; scaled to sum 1.
        seed: The run's seed.
        mean_lengths: (K,) mean tokens of a row of each source, where shares are shares of tokens; None where they are
            shares of rows.
        streams: Whether the sources are streams, whose sizes nobody knows: ``sizes`` are where each is numbered from.
        objective: (K,) the shares that the sources have in the loss, where these are others than in the rows; scaled to
            sum 1. None where a row of one source counts as much as one of another.

    Attributes:
        objective: (K,) float64 the same, sum 1; None.
        names: (K) names, in the order of the user's ``dataset`` key.
        sizes: (K,) int64 rows of each source.
        unit: What proportions are shares of: ``rows`` or ``tokens``.
        proportions: (K,) float64 current shares, sum 1.
    """

    def __init__(
        self,
        names: Sequence[str],
        sizes: ArrayLike,
        proportions: ArrayLike,
        seed: int,
        mean_lengths: ArrayLike | None = None,
        streams: bool = False,
        objective: ArrayLike | None = None,
    ) -> None:
        self.names = tuple(names)
        self.sizes: NDArray[np.int64] = np.asarray(sizes, dtype=np.int64)
        self.seed = seed
        self.unit = "rows" if mean_lengths is None else "tokens"
        self._per_row: NDArray[np.float64] = (
            np.ones(len(self.names)) if mean_lengths is None else np.array(mean_lengths)
        )
        self.streams = streams
        self._offsets = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self._cursors = np.zeros(len(self.names), dtype=np.int64)
        self._owed = np.zeros(len(self.names), dtype=np.float64)
        self._planned = 0
        self._orders: list[Permutation] = [
            ReadingOrder() if streams else RowOrder(int(size), seed, "domain", name)
            for size, name in zip(self.sizes, self.names, strict=True)
        ]
        self.objective = None if objective is None else _scaled(np.array(objective, dtype=np.float64))
        self.set_proportions(proportions)

    def set_proportions(self, proportions: ArrayLike) -> None:
        """Sets the shares of the segments planned from now on.

        Args:
            proportions: (K,) finite, non-negative, not all zero; scaled to sum 1.
        """
        shares_K: NDArray[np.float64] = np.array(proportions, dtype=np.float64)
        if shares_K.shape != (len(self.names),):
            raise ValueError(f"expected one share for each of {', '.join(self.names)}; got shape {shares_K.shape}")
        if not np.isfinite(shares_K).all() or (shares_K < 0).any() or not shares_K.any():
            raise ValueError(f"shares must be finite, non-negative and not all zero; got {shares_K.tolist()}")
        if self.objective is not None:
            lost = never_seen(self.names, shares_K, self.objective)
            if lost:
                raise ComponentError(str(lost[0]))
        self.proportions: NDArray[np.float64] = _scaled(shares_K)

    @property
    def objective_weights(self) -> NDArray[np.float64]:
        """(K,) v = w / q: what a row of each source counts in the loss, so that its share there is as wanted.

        q are the proportions of the moment, w those of the objective, both in the unit of the shares; the mean of v
        over what is drawn is 1. 1 for a source that is not drawn; 1 for each where there is no objective.
        """
        if self.objective is None:
            return np.ones(len(self.names))
        drawn_K = self.proportions > 0
        return np.divide(self.objective, self.proportions, out=np.ones(len(self.names)), where=drawn_K)

    def objective_by_name(self) -> dict[str, float]:
        """Returns the shares of the sources in the loss by their names; nothing where there is no objective."""
        return {} if self.objective is None else dict(zip(self.names, self.objective.tolist(), strict=True))

    def weights_by_name(self) -> dict[str, dict[str, float]]:
        """Returns what a row of each source counts, for the trace; nothing where there is no objective."""
        if self.objective is None:
            return {}
        return {"objective_weights": dict(zip(self.names, self.objective_weights.tolist(), strict=True))}

    @property
    def places(self) -> list[tuple[str, int, int]]:
        """Name, first row in the train dataset and number of rows of each source."""
        return list(zip(self.names, self._offsets.tolist(), self.sizes.tolist(), strict=True))

    def by_name(self) -> dict[str, float]:
        """Returns the shares by the names of the sources."""
        return dict(zip(self.names, self.proportions.tolist(), strict=True))

    def in_words(self) -> str:
        """Returns ``a 0.500, b 0.500``; of many sources those with the largest shares, for a line of the log."""
        if len(self.names) <= MANY:
            return shares_in_words(self.names, self.proportions)
        largest = np.sort(np.argsort(-self.proportions, kind="stable")[:MANY])
        shown = shares_in_words([self.names[place] for place in largest], self.proportions[largest])
        return (
            f"{shown}, {len(self.names) - MANY} others {self.proportions.sum() - self.proportions[largest].sum():.3f}"
        )

    @property
    def amounts(self) -> NDArray[np.float64]:
        """(K,) how much of the unit of the shares each source has.

        Raises:
            ConfigError: The sources are streams.
        """
        if self.streams:
            raise ConfigError(
                "the sizes of the sources are asked for, and streams have none -> streaming: false, or use what does "
                "not look at sizes"
            )
        amounts_K: NDArray[np.float64] = self.sizes * self._per_row
        return amounts_K

    @property
    def row_shares(self) -> NDArray[np.float64]:
        """(K,) shares of rows that give the proportions in their unit; sum 1."""
        if self.unit == "rows":
            return self.proportions
        rows_K: NDArray[np.float64] = self.proportions / self._per_row
        rows_K /= rows_K.sum()
        return rows_K

    def plan(self, num_rows: int) -> NDArray[np.int64]:
        """Returns the next ``num_rows`` rows of the train dataset in the order of training, and moves the positions."""
        starts_K = self._cursors.copy()
        divided = self.divide(num_rows)
        parts = [
            self._offsets[k] + self._orders[k].take(int(starts_K[k]), count)
            for k, count in enumerate(divided.counts.tolist())
        ]
        rows: NDArray[np.int64] = np.concatenate(parts)[divided.order]
        return rows

    def divide(self, num_rows: int) -> Division:
        """Returns how the next ``num_rows`` rows are divided among the sources, and moves the positions.

        Whoever asks draws the rows of each source; :meth:`plan` draws them without replacement.
        """
        shares_K = self.row_shares
        counts_K = largest_remainder(shares_K, num_rows, self._owed)
        rng = np.random.Generator(np.random.Philox(key=seeded(self.seed, "mixture", self._planned)))
        places = [
            places_of_rows(count, num_rows, shares_K[k], self._owed[k], rng)
            for k, count in enumerate(counts_K.tolist())
        ]
        self._owed += shares_K * num_rows - counts_K
        self._cursors += counts_K
        self._planned += 1
        return Division(counts_K, np.argsort(np.concatenate(places), kind="stable"))

    def seen(self) -> dict[str, dict[str, float]]:
        """Returns how often each source was drawn from so far, for the trace: rows, and passes over what has a size."""
        rows = {name: int(n) for name, n in zip(self.names, self._cursors, strict=True)}
        if self.streams:
            return {"rows_seen": dict(rows)}
        passes = {name: round(rows[name] / int(size), 6) for name, size in zip(self.names, self.sizes, strict=True)}
        return {"rows_seen": dict(rows), "passes": passes}

    def state_dict(self) -> dict[str, Any]:
        """Returns what continues the mixture: shares, and each source's position."""
        return {
            "names": list(self.names),
            "proportions": self.proportions.copy(),
            "cursors": self._cursors.copy(),
            "owed": self._owed.copy(),
            "planned": self._planned,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        Raises:
            CheckpointError: It is of other sources, or of these in another order.
        """
        if list(state["names"]) != list(self.names):
            raise CheckpointError(
                f"the state of a mixture of {', '.join(state['names'])} cannot be that of {', '.join(self.names)} -> "
                "name the same sources in the same order in dataset"
            )
        self.proportions = np.array(state["proportions"], dtype=np.float64)
        self._cursors = np.array(state["cursors"], dtype=np.int64)
        self._owed = np.array(state["owed"], dtype=np.float64)
        self._planned = int(state["planned"])


def shares_in_words(names: Sequence[str], shares_K: NDArray[np.float64]) -> str:
    """Returns ``a 0.500, b 0.500``."""
    return ", ".join(f"{name} {share:.3f}" for name, share in zip(names, shares_K, strict=True))


def places_of_rows(
    count: int, num_rows: int, share: float, owed: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Returns where in a segment the rows of a source come: (count,) increasing numbers from 0 to ``num_rows``.

    Args:
        count: Rows of the source.
        num_rows: Rows of the segment.
        share: Its share of them, above 0 where there is a row.
        owed: Rows that rounding has taken from it before the segment.
        rng: Chooses each row's place inside of its stretch.
    """
    marks = np.clip((np.arange(count + 1) - owed) / share, 0, num_rows) if count else np.zeros(1)
    places: NDArray[np.float64] = marks[:-1] + rng.random(count) * np.diff(marks)
    return places


def initial_proportions(rule: str, given: Sequence[float] | None, sizes: ArrayLike) -> NDArray[np.float64]:
    """Returns the (K,) shares that ``mixture_sample_rule`` starts from, sum 1. Sizes are in the unit of the shares.

    ``mixture``: ``init_mixture_proportions``, or the sources' sizes where that is absent; ``stratified``: the sizes;
    ``uniform``: equal shares.
    """
    sizes_K: NDArray[np.float64] = np.asarray(sizes, dtype=np.float64)
    if rule == "mixture" and given is not None:
        shares_K: NDArray[np.float64] = np.asarray(given, dtype=np.float64)
    elif rule == "uniform":
        shares_K = np.ones_like(sizes_K)
    else:
        shares_K = sizes_K
    return _scaled(shares_K)


def _scaled(shares_K: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns shares with the sum 1; the sum of what is given may be more than a number can hold."""
    if shares_K.max() > 1e300:
        shares_K = shares_K / shares_K.max()
    scaled_K: NDArray[np.float64] = shares_K / shares_K.sum()
    return scaled_K
