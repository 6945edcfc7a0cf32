"""Rows drawn from a distribution that lies close to the target and is spread out over different rows (TSDS).

Liu, Karbasi and Rekatsinas, TSDS: Data Selection for Task-Specific Model Finetuning, NeurIPS 2024, arXiv 2410.11303;
the variant with kernel density. Target and train dataset -> embeddings -> nearest neighbours -> the optimal transport
of :mod:`dataflex_selectors.parts.transport` -> a probability for each row -> a draw at each update.

Compared with the authors' code: a query whose nearest row has room gives all of its mass to that row. Theirs gives that
row more mass than the query has, and the probabilities no longer sum to 1. Neighbours are exact, and rows without
labels are no candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.cost import Ahead, Cost, Work
from dataflex.core.explain import Explanation
from dataflex.core.parameter_checks import at_least, between, count, flag, positive, require
from dataflex.core.registry import register_selector
from dataflex.scoring.embedder import embedding_work, vector_width
from dataflex.train.selector.base_selector import Selection
from numpy.typing import NDArray

from dataflex_selectors.parts.drawing import draw, logarithms
from dataflex_selectors.parts.enough import require_enough
from dataflex_selectors.parts.neighbours import backend_problem, nearest
from dataflex_selectors.parts.to_target import ToTarget
from dataflex_selectors.parts.transport import Givers, capped, densities, largest_givers, transported

if TYPE_CHECKING:
    import torch


@register_selector("tsds")
class TsdsSelector(ToTarget):
    """Draws rows near the evaluation set, near-duplicates sharing one chance, by optimal transport.

    Args:
        neighbours: Rows that a query can give mass to; at most a tenth of the dataset is used.
        kde_neighbours: Rows that a density is summed over; at most a tenth of the dataset is used.
        sigma: Distance at which two rows are no longer near-duplicates, between 0 and 2; 0 for no such sharing.
        alpha: Weight of closeness to the target against spread, from 0 to 1.
        scale: C of the paper, by which distances are divided.
        replacement: Whether a row may come more than once in a stretch.
        backend: torch or faiss, for the search.
        **run: The target, how rows are embedded, and what every selector is given: see :class:`ToTarget`.

    Raises:
        ConfigError: A parameter is out of its range, there is no evaluation set, or a package is missing; the message
            holds everything that is wrong.
    """

    replacement: bool = True

    def __init__(
        self,
        *,
        neighbours: int = 5000,
        kde_neighbours: int = 1000,
        sigma: float = 0.75,
        alpha: float = 0.5,
        scale: float = 5.0,
        replacement: bool = True,
        backend: str = "torch",
        **run: Any,
    ) -> None:
        super().__init__(**run)
        require(
            "tsds selector",
            *self.problems,
            backend_problem(backend),
            count("neighbours", neighbours),
            count("kde_neighbours", kde_neighbours),
            at_least("sigma", sigma, 0),
            between("alpha", alpha, 0, 1),
            positive("scale", scale),
            flag("replacement", replacement),
        )
        self.aim()
        self.backend = backend
        self.neighbours, self.kde_neighbours = neighbours, kde_neighbours
        self.sigma, self.alpha, self.scale = float(sigma), float(alpha), float(scale)
        self.replacement = replacement
        self._rows: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # with a probability above 0
        self._p: NDArray[np.float64] = np.empty(0)  # their probabilities
        self._givers: Givers | None = None  # the queries that gave each of them most; None where nobody asks
        self._computed_at = -1  # the update of the embeddings that they come from

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Target and rows embedded and searched, and the rows found among each other. See the base class."""
        size, width, work = ahead.rows.rows, vector_width(params, ahead), Work()
        if ahead.due(params["refresh"] if params["embedding"] == "model" else None):
            found = min(size, ahead.target.rows * capped(params["neighbours"], int(size)))
            work = embedding_work(params, ahead.rows + ahead.target)
            work += Work(products=(ahead.target.rows * size + found**2) * width)
        vectors = 4.0 * width * (size + ahead.target.rows)
        return Cost(work, host_bytes=vectors, state_bytes=16 * size)

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Draws rows from the distribution; the scores are their probabilities. See the base class.

        Raises:
            ComponentError: No row has a label, or, without replacement, fewer have a probability than were asked for.
        """
        update = kwargs["context"].update
        if self.is_due(self._computed_at, update):
            self._rows, self._p, self._givers = self._distribution(model, step_id, kwargs["context"].explains)
            self._computed_at = update
        require_enough(
            1 if self.replacement else num_samples,
            len(self._rows),
            len(self.dataset),
            "have a probability above 0",
            "use replacement: true, or a smaller alpha or more neighbours, which spread it wider",
        )
        places = draw(logarithms(self._p), num_samples, self.replacement, self.generator(update))
        return Selection(self._rows[places], self._p[places], candidates=(self._rows, self._p))

    def explain(
        self, model: torch.nn.Module, rows_S: NDArray[np.int64], step_id: int, **kwargs: Any
    ) -> Explanation | None:
        """Returns the rows of the target that gave most of each row's mass. See the base class.

        The terms are the masses that the optimal transport moves to the row; they sum to its probability. A row that
        got none has a score of 0 and no target rows.
        """
        if self._givers is None:  # resumed from a checkpoint of a run that did not explain
            return None
        scores_S = np.zeros(len(rows_S))
        places_SX: list[list[tuple[int, float]]] = []
        for number, row in enumerate(rows_S):
            place = int(np.searchsorted(self._rows, row))
            if place == len(self._rows) or self._rows[place] != row:
                places_SX.append([])
                continue
            scores_S[number] = self._p[place]
            places_SX.append(self._givers.of(place))
        return self.explained_by_place(places_SX, scores_S)

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float64]:
        """Returns the probability of every row: (N,), NaN without a label. See the base class."""
        rows, p, _ = self._distribution(model, step_id, explains=False)
        scores_N = np.full(len(self.dataset), np.nan)
        scores_N[self.eligible()] = 0
        scores_N[rows] = p
        return scores_N

    def _distribution(
        self, model: torch.nn.Module, step_id: int, explains: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], Givers | None]:
        """Returns the rows with a probability above 0, in row order, their probabilities, which sum to 1, and why."""
        eligible = self.eligible()
        require_enough(1, len(eligible), len(self.dataset))
        queries_MD = self.embedded_target(model, step_id)
        pool_ND = self.embedded(model, step_id, eligible)
        return self.on_rank_0(lambda: self._over(queries_MD, pool_ND, eligible, explains))

    def _over(
        self, queries_MD: NDArray[np.float32], pool_ND: NDArray[np.float32], eligible: NDArray[np.int64], explains: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], Givers | None]:
        """As :meth:`_distribution`, from the vectors."""
        distances_MK, ids_MK = self._nearest(queries_MD, pool_ND, capped(self.neighbours, len(pool_ND)))
        union_U, member_MK = np.unique(ids_MK, return_inverse=True)
        member_MK = member_MK.reshape(ids_MK.shape)
        found_UD = pool_ND[union_U]
        rho_U = densities(
            lambda first, last, k: self._nearest(found_UD[first:last], found_UD, k),
            len(union_U),
            capped(self.kde_neighbours, len(pool_ND)),
            self.sigma,
        )
        mass_MK = transported(distances_MK, rho_U[member_MK], self.alpha, self.scale)
        p_U = np.asarray(np.bincount(member_MK.ravel(), mass_MK.ravel(), len(union_U)), dtype=np.float64)
        given = p_U > 0
        givers = largest_givers(mass_MK, member_MK, p_U).at(given) if explains else None
        return eligible[union_U[given]], p_U[given] / p_U.sum(), givers

    def _nearest(
        self, queries_QD: NDArray[np.float32], pool_ND: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        return nearest(queries_QD, pool_ND, k, backend=self.backend, device=self.device)

    def state_dict(self) -> dict[str, Any]:
        """Returns the distribution and when it was computed, and where rows are explained, why."""
        givers = None if self._givers is None else [self._givers.queries, self._givers.shares]
        return {"rows": self._rows, "p": self._p, "computed_at": self._computed_at, "givers": givers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._rows = np.asarray(state["rows"], dtype=np.int64)
        self._p = np.asarray(state["p"], dtype=np.float64)
        self._computed_at = int(state["computed_at"])
        self._givers = None if state.get("givers") is None else Givers(*map(np.asarray, state["givers"]))
