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
from dataflex.core.parameter_checks import at_least, between, count, flag, positive, require
from dataflex.core.registry import register_selector
from dataflex.train.selector.base_selector import Selection
from numpy.typing import NDArray

from dataflex_selectors.parts.drawing import draw, logarithms
from dataflex_selectors.parts.embedder import embedding_work, vector_width
from dataflex_selectors.parts.enough import require_enough
from dataflex_selectors.parts.neighbours import backend_problem, nearest
from dataflex_selectors.parts.to_target import ToTarget
from dataflex_selectors.parts.transport import capped, densities, transported

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
            self._rows, self._p = self._distribution(model, step_id)
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

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float64]:
        """Returns the probability of every row: (N,), NaN without a label. See the base class."""
        rows, p = self._distribution(model, step_id)
        scores_N = np.full(len(self.dataset), np.nan)
        scores_N[self.eligible()] = 0
        scores_N[rows] = p
        return scores_N

    def _distribution(self, model: torch.nn.Module, step_id: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns the rows with a probability above 0, in row order, and their probabilities, which sum to 1."""
        eligible = self.eligible()
        require_enough(1, len(eligible), len(self.dataset))
        queries_MD = self.embedded_target(model, step_id)
        pool_ND = self.embedded(model, step_id, eligible)
        return self.on_rank_0(lambda: self._over(queries_MD, pool_ND, eligible))

    def _over(
        self, queries_MD: NDArray[np.float32], pool_ND: NDArray[np.float32], eligible: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
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
        p_U = np.bincount(member_MK.ravel(), mass_MK.ravel(), len(union_U))
        given = p_U > 0
        return eligible[union_U[given]], p_U[given] / p_U.sum()

    def _nearest(
        self, queries_QD: NDArray[np.float32], pool_ND: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        return nearest(queries_QD, pool_ND, k, backend=self.backend, device=self.device)

    def state_dict(self) -> dict[str, Any]:
        """Returns the distribution and when it was computed."""
        return {"rows": self._rows, "p": self._p, "computed_at": self._computed_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._rows = np.asarray(state["rows"], dtype=np.int64)
        self._p = np.asarray(state["p"], dtype=np.float64)
        self._computed_at = int(state["computed_at"])
