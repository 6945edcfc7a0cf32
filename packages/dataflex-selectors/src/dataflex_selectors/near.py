"""The rows nearest to the target: each row of the target takes its nearest in turn, round after round.

Target and train dataset -> embeddings -> for each query the nearest rows -> rank by rank:

    x_j,1 <= x_j,2 <= ...                           rows by distance to query j (all vectors have length 1)
    x_1,1  x_2,1 .. x_M,1  x_1,2 .. x_M,2  ..       all first neighbours, all second ones, ...; a row comes once

So every query is served, however far away it lies, and rows that are near to many of them come early. Nothing is drawn.

Origin: the near selector of OpenDCAI/DataFlex. Differences: neighbours are exact, and as many are looked up as it takes
to have enough different rows; with ``exclude_seen`` an update goes on where the last one stopped, and with
``embedding: model`` distances are those under the model as it is now. Rows without labels are never taken.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.context import UpdateContext
from dataflex.core.cost import Ahead, Cost, Work
from dataflex.core.explain import Explanation
from dataflex.core.parameter_checks import flag, require
from dataflex.core.registry import register_selector
from dataflex.scoring.embedder import embedding_work, vector_width
from dataflex.train.selector.base_selector import Selection
from dataflex.utils.progress import Progress
from numpy.typing import NDArray

from dataflex_selectors.parts.enough import require_enough
from dataflex_selectors.parts.neighbours import Search, backend_problem, nearest
from dataflex_selectors.parts.ranking import first_places
from dataflex_selectors.parts.to_target import ToTarget

if TYPE_CHECKING:
    import torch

_CELLS = 2**22  # neighbours looked at at a time: 64 MB
_NEVER = np.iinfo(np.int64).max  # the turn of a row that is no neighbour of any query


def nearest_in_turn(
    search: Search, queries: int, size: int, count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Returns ``count`` different rows, all first neighbours first, and the distance and number of each one's query.

    A row's query is the one that took it.

    Memory is that of the rows, not of the rows times the queries.

    Args:
        search: Finds the nearest of ``size`` rows; called again for twice as many until there are enough.
        queries: Number of queries, M >= 1.
        size: Rows that can be found.
        count: How many to return, at most ``size``.
    """
    k = 2 * -(-count // queries)
    while True:
        turn_N, distance_N = _turns(search, queries, size, min(k, size))
        if np.count_nonzero(turn_N < _NEVER) >= count:  # always reached: with k = size each query has all rows
            rows = first_places(count, turn_N)
            return rows, distance_N[rows], turn_N[rows] % queries
        k *= 2


_SEARCHES = 1.5  # of nearest_in_turn, which doubles the neighbours until there are enough


@functools.lru_cache(maxsize=16)
def ranked_at(size: int, count: int, turns: int, *, embedding: str, seen: bool, refresh: int) -> dict[int, int]:
    """Returns the turns at which rows are ranked, and how many rows may be taken at each, by the rules of the selector.

    Args:
        size: Rows that can be taken.
        count: Rows that a turn asks for.
        turns: How often rows are asked for.
        embedding: As the selector's.
        seen: Its ``exclude_seen``.
        refresh: Turns after which embeddings are too old; of those that do not move, this has no effect.
    """
    moves, found, ahead, taken, last = embedding == "model", {}, 0, 0, -1
    for turn in range(turns):
        if ahead < count or last < 0 or (moves and turn - last >= refresh):
            left, last = size - taken, turn
            found[turn] = left if moves else size
            wanted = _worth_ranking(count, left, turns - turn, embedding, refresh) if seen else count
            ahead = min(wanted, left)
            if left < count:  # the last of this round, then the first of the next one
                ahead, taken = count, -left
        if seen:
            ahead, taken = ahead - count, taken + count
    return found


def _worth_ranking(count: int, left: int, turns: int, embedding: str, refresh: int) -> int:
    """Returns how many rows to rank: those of the updates until the next ranking."""
    if embedding == "model":
        return count * min(refresh, turns)
    # The last rows are far from every query: to find them takes nearly all neighbours of each query. Ngrams are
    # embedded again in seconds, so these rows are ranked later.
    most = left // 2 if embedding == "ngrams" else left
    return min(count * turns, max(count, most))


def _turns(search: Search, queries: int, size: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns when each row is first taken, in the order of rank and then query, and at what distance: (N,) twice."""
    turn_N, distance_N = np.full(size, _NEVER), np.full(size, np.inf)
    step = max(1, _CELLS // k)
    with Progress(f"searching for {k:,} rows near each query", queries, "queries") as progress:
        for first in range(0, queries, step):
            last = min(first + step, queries)
            distances_QK, ids_QK = search(first, last, k)
            turn_QK = np.arange(k) * queries + np.arange(first, last)[:, None]
            np.minimum.at(turn_N, ids_QK, turn_QK)
            earliest_QK = turn_N[ids_QK] == turn_QK
            distance_N[ids_QK[earliest_QK]] = distances_QK[earliest_QK]
            progress.done(last - first)
    return turn_N, distance_N


@register_selector("near")
class NearSelector(ToTarget):
    """Takes the rows that are nearest to the rows of the evaluation set, query by query in turn.

    Args:
        exclude_seen: Whether rows of earlier updates are left out until all rows have come.
        backend: torch or faiss, for the search.
        **run: The target, how rows are embedded, and what every selector is given: see :class:`ToTarget`.

    Raises:
        ConfigError: A parameter is out of its range, there is no evaluation set, or a package is missing; the message
            holds everything that is wrong.
    """

    def __init__(self, *, exclude_seen: bool = True, backend: str = "torch", **run: Any) -> None:
        super().__init__(**run)
        require(
            "near selector",
            *self.problems,
            backend_problem(backend),
            flag("exclude_seen", exclude_seen),
        )
        self.aim()
        self.backend = backend
        self.exclude_seen = exclude_seen
        self._ahead: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # the next rows
        self._similar: NDArray[np.float32] = np.empty(0, dtype=np.float32)  # their cosines with the query
        self._taker: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # the query that took each of them; -1: not known
        self._given: dict[int, int] = {}  # rows given last -> that query
        self._seen: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # rows not to be given again
        self._ranked_at = -1  # the update at which the rows ahead were ranked

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """The target and the rows embedded, and one searched for the other, where rows are ranked. See the base."""
        size, count = int(ahead.rows.rows), max(1, round(ahead.asked.rows))
        at = ranked_at(
            size, min(count, size), -(-(ahead.updates - ahead.first) // ahead.every),
            embedding=params["embedding"], seen=params["exclude_seen"],
            refresh=-(-params["refresh"] // ahead.every),
        ) if size else {}  # fmt: skip
        rows = ahead.rows.of(at.get((ahead.update - ahead.first) // ahead.every, 0))
        width, work = vector_width(params, ahead), Work()
        if rows.rows:
            work = embedding_work(params, rows + ahead.target)
            work += Work(products=_SEARCHES * ahead.target.rows * rows.rows * width)
        return Cost(work, host_bytes=4.0 * width * (size + ahead.target.rows), state_bytes=20.0 * size)

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Returns the next rows in turn; the scores are their cosines with the query that took them.

        Raises:
            ComponentError: Fewer rows have a label than were asked for.
        """
        context: UpdateContext = kwargs["context"]
        if len(self._ahead) < num_samples or self.is_due(self._ranked_at, context.update):
            self._rank(model, step_id, num_samples, context)
        rows, scores = self._ahead[:num_samples], self._similar[:num_samples]
        ranked = self._ahead, self._similar
        self._given = dict(zip(rows.tolist(), self._taker.tolist(), strict=False)) if context.explains else {}
        if self.exclude_seen:
            self._ahead, self._similar = self._ahead[num_samples:], self._similar[num_samples:]
            self._taker = self._taker[num_samples:]
            self._seen = np.concatenate([self._seen, rows])
        return Selection(rows, scores, candidates=ranked)

    def explain(self, model: torch.nn.Module, rows_S: NDArray[np.int64], step_id: int, **kwargs: Any) -> Explanation:
        """Returns the query that took each row, and the queries nearest to it after that one. See the base class.

        A share is the query's cosine over that of the query that took the row, which has 1; of a row that none took,
        over that of the nearest. Cosines are those of the embeddings as they are now.
        """
        context: UpdateContext = kwargs["context"]
        taker_S = [self._given.get(row, -1) for row in rows_S.tolist()]
        self._given = {}
        return self.explained_by_cosine(model, step_id, rows_S, taker_S, self.generator(f"{context.update}, explained"))

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float64]:
        """Returns every row's cosine with the query nearest to it: (N,), NaN without a label. See the base class."""
        eligible = self.eligible()
        scores_N = np.full(len(self.dataset), np.nan)
        if len(eligible):
            queries_MD, pool_ND = self.embedded_target(model, step_id), self.embedded(model, step_id, eligible)
            scores_N[eligible] = self.on_rank_0(
                lambda: 1 - nearest(pool_ND, queries_MD, 1, backend=self.backend, device=self.device)[0][:, 0] ** 2 / 2
            )
        return scores_N

    def _rank(self, model: torch.nn.Module, step_id: int, count: int, context: UpdateContext) -> None:
        """Ranks as many rows as the updates until the next ranking ask for."""
        eligible = self.eligible()
        require_enough(count, len(eligible), len(self.dataset))
        left = eligible[~np.isin(eligible, self._seen)]
        rank = functools.partial(self._first, model, step_id, self.embedded_target(model, step_id), eligible)
        ahead = [rank(self._seen, min(self._worth_ranking(count, len(left), context), len(left)))]
        if len(left) < count:  # the last of this round, then the first of the next one
            self._seen = np.empty(0, dtype=np.int64)
            ahead.append(rank(left, count - len(left)))
        self._ahead, self._similar, self._taker = (np.concatenate(parts) for parts in zip(*ahead, strict=True))
        self._ranked_at = context.update

    def _worth_ranking(self, count: int, left: int, context: UpdateContext) -> int:
        """Returns how many rows to rank: those of the updates until the next ranking."""
        if not self.exclude_seen:
            return count
        updates = max(1, context.updates - context.update)
        return _worth_ranking(count, left, updates, self.embedder.embedding, self.refresh)

    def _first(
        self,
        model: torch.nn.Module,
        step_id: int,
        queries_MD: NDArray[np.float32],
        rows: NDArray[np.int64],
        without: NDArray[np.int64],
        count: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        """Returns the first ``count`` of the rows in turn that are not among ``without``, their cosines and queries."""
        if not count:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64)
        if self.embedder.moves:  # the order changes anyway: embed only rows that can be taken
            rows, without = rows[~np.isin(rows, without)], without[:0]
        pool_ND = self.embedded(model, step_id, rows)

        def search(first: int, last: int, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
            return nearest(queries_MD[first:last], pool_ND, k, backend=self.backend, device=self.device)

        places, distances, takers = self.on_rank_0(
            lambda: nearest_in_turn(search, len(queries_MD), len(rows), count + len(without))
        )
        kept = ~np.isin(rows[places], without)
        cosines = 1 - distances[kept] ** 2 / 2  # |x - y|^2 = 2 - 2 cos for vectors of length 1
        return rows[places[kept]][:count], cosines[:count].astype(np.float32), takers[kept][:count]

    def state_dict(self) -> dict[str, Any]:
        """Returns the rows ahead, those already given and when they were ranked."""
        ahead = {"ahead": self._ahead, "similar": self._similar, "taker": self._taker}
        return ahead | {"seen": self._seen, "ranked_at": self._ranked_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned; that of an earlier version did not know the queries."""
        self._ahead = np.asarray(state["ahead"], dtype=np.int64)
        self._similar = np.asarray(state["similar"], dtype=np.float32)
        self._taker = np.asarray(state.get("taker", np.full(len(self._ahead), -1)), dtype=np.int64)
        self._seen = np.asarray(state["seen"], dtype=np.int64)
        self._ranked_at = int(state["ranked_at"])
