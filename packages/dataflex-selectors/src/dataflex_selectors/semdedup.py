"""One of each group of near copies: rows that are near an earlier row of their cluster are left out (SemDeDup).

Abbas, Tirumala, Simig, Ganguli and Morcos, SemDeDup: Data-efficient learning at web-scale through semantic
deduplication, 2023, arXiv 2303.09540. Vectors of length 1 -> spherical k-means -> in each cluster:

    order: by 1 - x_i . c, the farthest from the centre first (keep: hard), last (easy), or at random
    m_i   = max(0, max over j before i of x_i . x_j)
    row i is left out if  m_i > 1 - eps

Rows of two clusters are never compared, which is what makes it cheap: N C D products for the clusters and N^2 D / C
within them. With C = sqrt(N), the default, that is 2 N^1.5 D: 10 million rows in minutes.

A row counts as earlier even if it is left out itself, as in the authors' program: of a chain of rows, each near the
next one, only the first stays. ``against: kept`` compares with rows that stay alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.cost import Ahead, Cost, Work
from dataflex.core.errors import Problem
from dataflex.core.parameter_checks import count_or_null, is_number, one_of, require
from dataflex.core.registry import register_selector
from dataflex.scoring.k_means import ITERATIONS, tries
from dataflex.train.selector.base_selector import Selection
from dataflex.utils.logging import logger
from dataflex.utils.progress import Progress
from numpy.typing import NDArray

from dataflex_selectors.parts.enough import require_enough, tell_of_clusters
from dataflex_selectors.parts.near_copies import cosine_above, nearest_earlier, walked_apart
from dataflex_selectors.parts.own_vectors import OwnVectors, RowVectors, vectors_wide, vectors_work
from dataflex_selectors.parts.ranking import first_places
from dataflex_selectors.parts.sampled_clusters import clustered, default_clusters, sampled_rows

if TYPE_CHECKING:
    import torch

KEEP = ("hard", "easy", "random")
AGAINST = ("earlier", "kept")
LEAST_EPS = 1e-6
"""Below it, rounding decides whether copies are found: cosines are in float32, in which 1 - 1e-8 is 1."""


def keep_order(distance_n: NDArray[np.floating], keep: str, generator: np.random.Generator) -> NDArray[np.int64]:
    """Returns the rows of a cluster in the order in which they are kept: (n,) places.

    Args:
        distance_n: (n,) distance of each to the centre.
        keep: hard: the farthest first, easy: the reverse of that, random: drawn.
        generator: The source of randomness; of a cluster of one row, nothing is drawn.
    """
    order = np.argsort(-distance_n, kind="stable")
    if keep == "random" and len(order) > 1:
        return generator.permutation(order)
    return order[::-1] if keep == "easy" else order


def parts_of(order_n: NDArray[np.int64], most: int | None) -> list[NDArray[np.int64]]:
    """Returns the rows of a cluster in parts of nearly equal size, none larger than ``most``; None for one part."""
    pieces = 1 if most is None else -(-len(order_n) // most)
    cuts = np.linspace(0, len(order_n), pieces + 1).astype(np.int64)
    return [order_n[first:last] for first, last in itertools.pairwise(cuts)]


def in_clusters(label_N: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yields the rows of each cluster, ascending, cluster by cluster."""
    order = np.argsort(label_N, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(label_N[order])) + 1)


@register_selector("semdedup")
class SemDedupSelector(OwnVectors):
    """Takes rows at random, but of near copies in a cluster only one (SemDeDup).

    Args:
        eps: A row is left out where its cosine with an earlier row of its cluster is above 1 - eps; at least 1e-6.
        keep: Which of near copies stays: hard, the one farthest from the centre of the cluster; easy, the nearest; or
            random.
        against: What a row is compared with: earlier, all rows before it, or kept, those of them that stay.
        clusters: How many; null for the square root of the number of rows.
        max_cluster: Rows of a cluster that are compared with each other; larger ones are cut, in their order; null for
            no limit.
        too_few: What to do where fewer rows stay than are asked for: relax takes copies too, those with the smallest
            cosine first, error stops.
        **run: How rows are embedded, a file of vectors, ``exclude_seen``, and what every selector is given: see
            :class:`~dataflex_selectors.parts.own_vectors.OwnVectors`.

    Raises:
        ConfigError: A parameter is out of its range, a file cannot be read, or a package is missing; the message holds
            everything that is wrong.
    """

    def __init__(
        self,
        *,
        eps: float = 0.05,
        keep: str = "hard",
        against: str = "earlier",
        clusters: int | None = None,
        max_cluster: int | None = None,
        too_few: str = "relax",
        **run: Any,
    ) -> None:
        super().__init__(too_few=too_few, **run)
        require(
            "semdedup selector",
            *self.problems,
            _inside("eps", eps),
            one_of("keep", keep, KEEP),
            one_of("against", against, AGAINST),
            count_or_null("clusters", clusters, null="the square root of the rows"),
            count_or_null("max_cluster", max_cluster, null="no limit"),
        )
        self.open_vectors("semdedup selector")
        self.eps, self.keep, self.against = float(eps), keep, against
        self.clusters, self.max_cluster = clusters, max_cluster
        self._similar: NDArray[np.float32] = np.empty(0, dtype=np.float32)  # (E,) m of each eligible row
        self._stays: NDArray[np.bool_] = np.empty(0, dtype=np.bool_)  # (E,)
        self._found_at = -1  # the update at which copies were looked for

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """The rows embedded, clustered and compared, where that is due. See the base class."""
        size, width, work = ahead.rows.rows, vectors_wide(params, ahead), Work()
        moves = params["embedding"] == "model" and params["vectors"] is None
        if size and ahead.due(params["refresh"] if moves else None):
            clusters = int(min(params["clusters"] or default_clusters(int(size)), size))
            trained = sampled_rows(int(size), clusters) * (ITERATIONS + 1 + tries(clusters))
            compared = size / clusters / 2 if params["max_cluster"] is None else params["max_cluster"] / 2
            work = vectors_work(params, ahead.rows)
            work += Work(products=((trained + size) * clusters + size * compared) * width)
        vectors = 0.0 if params["vectors"] is not None else 4.0 * width * size
        return Cost(work, host_bytes=vectors + 20.0 * size, state_bytes=4.25 * size)

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses what the base class refuses, and warns of clusters of one row. See the base class."""
        super().check_run(model, run)
        so = "only rows with the same vector are found to be copies"
        tell_of_clusters(self.name, "clusters", self.clusters, len(self.eligible()), so)

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Returns rows drawn from those that stay; the score of a row is 1 - m, its distance from the row before it.

        Raises:
            ComponentError: Fewer rows have a label than are asked for, or fewer stay.
        """
        context: UpdateContext = kwargs["context"]
        rows = self.eligible()
        require_enough(num_samples, len(rows), len(self.dataset))
        if self.is_due(self._found_at, context.update):
            self._look(model, step_id, context.update)
        places = self._drawn(num_samples, self.generator(context.update))
        distance_E = 1 - self._similar
        return Selection(rows[places], distance_E[places], candidates=(rows, distance_E))

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float64]:
        """Returns 1 - m of every row: (N,), 1 for the first of a cluster, NaN without a label. See the base class."""
        scores_N, rows = np.full(len(self.dataset), np.nan), self.eligible()
        if len(rows):
            self._look(model, step_id, kwargs["context"].update)
            scores_N[rows] = 1 - self._similar
        return scores_N

    def _look(self, model: torch.nn.Module, step_id: int, update: int) -> None:
        """Looks for copies. Rank 0 computes. Collective."""
        vectors = self.vectors_of(model, step_id)
        self._similar, self._stays = self.on_rank_0(lambda: self._compared(vectors, update))
        self._found_at = update
        copies = int(np.count_nonzero(~self._stays))
        logger.info("%s: %d of %d rows are copies of others (eps %g)", self.name, copies, len(self._stays), self.eps)

    def _compared(self, vectors: RowVectors, update: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Returns m of each eligible row, and whether it stays. On rank 0 alone."""
        size = len(self.eligible())
        clusters = self.clusters or default_clusters(size)
        label_E, cosine_E = clustered(vectors, size, clusters, self.generator(f"{update}, clusters"), self.device)
        similar_E, stays_E = np.zeros(size, dtype=np.float32), np.ones(size, dtype=np.bool_)
        generator = self.generator(f"{update}, order")
        with Progress(f"{self.name}: comparing rows within clusters", size) as progress:
            for own_n in in_clusters(label_E):
                order_n = own_n[keep_order(1 - cosine_E[own_n], self.keep, generator)]
                for part in parts_of(order_n, self.max_cluster):
                    if len(part) > 1:
                        self._compare(vectors[part], part, similar_E, stays_E)
                progress.done(len(own_n))
        return similar_E, stays_E

    def _compare(
        self,
        vectors_nD: NDArray[np.float32],
        part: NDArray[np.int64],
        similar_E: NDArray[np.float32],
        stays_E: NDArray[np.bool_],
    ) -> None:
        """Notes m of the rows of a part, and which of them stay."""
        similar_E[part] = nearest_earlier(vectors_nD, self.device)
        stays_E[part] = similar_E[part] <= 1 - self.eps
        if self.against == "kept" and not stays_E[part].all():
            every = np.arange(len(part), dtype=np.int64)
            taken = walked_apart(vectors_nD, every, cosine_above(1 - self.eps), device=self.device)
            stays_E[part[taken]] = True

    def _drawn(self, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Returns places of eligible rows: of those that stay, and where these are too few, copies behind them."""
        stay = np.flatnonzero(self._stays)
        if len(stay) < count:
            if self.too_few == "error":
                what = f"no row stays that is a copy of another (eps: {self.eps:g})"
                self.too_few_found(count, len(stay), what, "a smaller eps")
            copies = np.flatnonzero(~self._stays)
            most = copies[first_places(count - len(stay), self._similar[copies])]
            logger.warning(
                "%s: %d rows are wanted and %d stay, so %d copies are among them, of cosines up to %.4f",
                self.name, count, len(stay), len(most), self._similar[most].max(),
            )  # fmt: skip
            return np.concatenate([generator.permutation(stay), most])
        if not self.exclude_seen:
            return generator.choice(stay, count, replace=False)
        seen_E = self._seen[self.eligible()]
        left = stay[~seen_E[stay]]
        taken = generator.permutation(left) if len(left) < count else generator.choice(left, count, replace=False)
        if len(taken) < count:  # the last of this round, then some of the next one
            self._seen[:] = False
            others = stay[seen_E[stay]]
            taken = np.concatenate([taken, generator.choice(others, count - len(taken), replace=False)])
        self._seen[self.eligible()[taken]] = True
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Returns how near each row is to another, which stay, which were given, and when that was found."""
        found = {"similar": self._similar, "stays": np.packbits(self._stays), "found_at": self._found_at}
        return super().state_dict() | found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        Raises:
            CheckpointError: The file of vectors holds others.
        """
        super().load_state_dict(state)
        self._similar = np.asarray(state["similar"], dtype=np.float32)
        self._stays = np.unpackbits(np.asarray(state["stays"]), count=len(self._similar)).astype(np.bool_)
        self._found_at = int(state["found_at"])


def _inside(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is a number from :data:`LEAST_EPS` to below 1."""
    if is_number(found) and not math.isnan(found) and LEAST_EPS <= found < 1:
        return None
    what = f"found {found!r}, allowed: a number of at least {LEAST_EPS:g} and below 1"
    return Problem(key, what, f"{LEAST_EPS:g} leaves out equal rows alone")
