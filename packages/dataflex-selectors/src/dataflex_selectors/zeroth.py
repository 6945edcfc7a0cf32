"""Rows whose loss changes with the target's along random directions of the weights: influence without a backward pass.

Random directions -> for each, how fast every row's loss changes along it -> rows that change as the target does.

    a_p(z) = <grad l(z), xi_p>,   xi_p ~ N(0, I_d),   p = 1..P        forward passes only, see parts/derivatives
    b_pj   = mean over the rows z' of target set j of a_p(z')
    s_j(z) = 1/P sum_p a_p(z) b_pj                                    E s_j(z) = <grad l(z), mean grad of set j>
    score  = max_j s_j(z)

s_j(z) estimates the inner product of gradients that LESS computes, with a standard deviation of about |grad l(z)| |mean
grad| / sqrt(P): it is a sketch of the gradients with P columns. ``normalize: true`` divides by sqrt(sum_p a_p^2) and
sqrt(sum_p b_pj^2), which makes it an estimate of the cosine. Then rows of short answers, whose gradients are long, are
not preferred for that alone, and several target sets can be compared.

Origin: the zeroth-order selector that the documentation of OpenDCAI/DataFlex describes, with one direction. With P = 1
all rows share one random number, so the ranking is little more than noise; here P is a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.context import RunAhead
from dataflex.core.cost import Ahead, Cost, Work
from dataflex.core.errors import ComponentError
from dataflex.core.parameter_checks import count, count_or_null, flag, one_of, positive_or_null, require
from dataflex.core.registry import register_selector
from dataflex.model.autocast import autocast
from dataflex.rows.views import MixedSources, PlannedRows
from dataflex.scoring import RowPass, read_target
from dataflex.scoring.trial import trial_rows, try_losses
from dataflex.train.selector.base_selector import Selection, Selector
from numpy.typing import NDArray

from dataflex_selectors.parts.candidates import candidate_rows
from dataflex_selectors.parts.derivatives import METHODS, directional_derivatives
from dataflex_selectors.parts.enough import require_candidates, require_labelled
from dataflex_selectors.parts.pick import pick
from dataflex_selectors.parts.weight_directions import Directions
from dataflex_selectors.parts.whole_weights import whole_weights

if TYPE_CHECKING:
    import torch


def influence_scores(
    derivatives: Iterable[NDArray[np.float64]], bounds: NDArray[np.int64], normalize: bool
) -> NDArray[np.float64]:
    """Returns the score of each pool row: (N,), NaN where it has no derivative.

    Args:
        derivatives: a_p of the pool's rows and then of each target set's, for each direction; used one at a time, so
            memory is that of the pool times the number of target sets.
        bounds: (J + 2,) where the pool and the J target sets begin, 0 first, and the number of all rows.
        normalize: Whether the score is an estimate of the cosine or of the inner product.

    Raises:
        ComponentError: A target set has no row with a derivative.
    """
    size, sets, used = int(bounds[1]), len(bounds) - 2, 0
    product_NJ, row_N, target_J = np.zeros((size, sets)), np.zeros(size), np.zeros(sets)
    for a in derivatives:
        parts = np.split(a, bounds[1:-1])[1:]
        if any(np.isnan(part).all() for part in parts):
            raise ComponentError(
                "a set of eval_dataset has no row with a label -> use a larger cutoff_len, or other rows"
            )
        b_J = np.array([np.nanmean(part) for part in parts])
        product_NJ += a[:size, None] * b_J
        row_N += a[:size] ** 2
        target_J += b_J**2
        used += 1
    if not normalize:
        return np.asarray(product_NJ.max(axis=1) / used)
    scale_NJ = np.sqrt(row_N[:, None] * target_J)
    cosine_NJ = np.divide(product_NJ, scale_NJ, out=np.zeros_like(product_NJ), where=scale_NJ > 0)
    return np.where(np.isnan(row_N), np.nan, cosine_NJ.max(axis=1))


@register_selector("zeroth")
class ZerothSelector(Selector):
    """Takes the rows whose loss changes as the target's does along random directions in weight space.

    Args:
        eval_dataset: The target: a tokenised dataset, or several by name. A row's score is that for the set it suits
            best.
        directions: Number of random directions; the error of a score falls with its square root.
        method: finite_difference moves the weights and puts them back; jvp is exact; not every model supports it.
        step: Length of a finite difference as a share of the RMS of the trainable weights; null for 1e-3, or 2e-2
            where the model computes in 16 bits.
        normalize: Whether rows compete by the cosine or by the inner product, in which long gradients count more.
        candidates: Rows drawn afresh at each update to choose from; null for all.
        token_budget: Tokens that are scored at once; null for a default that suits the device.
        **run: What every selector is given; ``cache_dir`` is not used: directions are drawn anew at each update.

    Raises:
        ConfigError: A parameter is out of its range, there is no evaluation set, or the engine shards weights; the
            message holds everything that is wrong.
    """

    reads_batches = True
    asks = "losses of tokens"

    def __init__(
        self,
        *,
        eval_dataset: Any,
        directions: int = 16,
        method: str = "finite_difference",
        step: float | None = None,
        normalize: bool = True,
        candidates: int | None = None,
        token_budget: int | None = None,
        **run: Any,
    ) -> None:
        super().__init__(**run)
        target = read_target(eval_dataset)
        require(
            "zeroth selector",
            target.problem,
            whole_weights(self.accelerator, "the selector moves all of them"),
            count("directions", directions),
            one_of("method", method, METHODS),
            positive_or_null("step", step),
            flag("normalize", normalize),
            count_or_null("candidates", candidates, null="all"),
            count_or_null("token_budget", token_budget),
        )
        self.targets = target.sets
        self.directions = directions
        self.method = method
        self.step = step
        self.normalize = normalize
        self.candidates = candidates
        self.token_budget = token_budget

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """For each direction, two forward passes; an exact derivative takes about as long as three. See the base."""
        exact, directions = params["method"] == "jvp", params["directions"]
        rows = ahead.rows.at_most(params["candidates"]) + ahead.target
        passes = rows.times((3 if exact else 2) * directions)
        moves = 0.0 if exact else 3.0 * directions * ahead.trainable  # there, across and back
        return Cost(Work(forward=passes, moved=moves), device_bytes=4.0 * ahead.trainable)

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses too few rows or candidates, and a model that cannot be moved or gives rows no loss. See the base."""
        require_candidates(self.candidates, run.most_rows)
        require_labelled(self.dataset, run.most_rows)
        Directions.of(model, self.seed)
        try_losses(model, self.dataset, self.data_collator, self.accelerator)
        if self.method == "jvp":
            rows = RowPass(self.dataset, self.data_collator, indices=trial_rows(self.dataset), progress=False)
            with autocast(self.accelerator):
                list(directional_derivatives(model, rows, method=self.method, directions=1, seed=self.seed))

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Returns the ``num_samples`` rows with the highest scores, best first. See the base class.

        Raises:
            ComponentError: Fewer candidates have a label than were asked for.
        """
        generator = self.generator(kwargs["context"].update)
        pool_N = candidate_rows(len(self.dataset), self.candidates, generator)
        scores_N = self._influences(model, step_id, pool_N, generator)
        best = pick(scores_N[:, None], num_samples, "topk", 1.0, generator, pool_N)
        return Selection(pool_N[best], scores_N[best], candidates=(pool_N, scores_N))

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float64]:
        """Returns the score of every row: (N,), NaN without a label. See the base class."""
        generator = self.generator(kwargs["context"].update)
        return self._influences(model, step_id, candidate_rows(len(self.dataset), None, generator), generator)

    def _influences(
        self, model: torch.nn.Module, step_id: int, pool_N: NDArray[np.int64], generator: np.random.Generator
    ) -> NDArray[np.float64]:
        """Returns the score of each row of the pool: (N,)."""
        everything = MixedSources(
            {"pool": PlannedRows(self.dataset, pool_N)}
            | {f"target {name}": rows for name, rows in self.targets.items()}
        )
        rows = RowPass(
            everything,
            self.data_collator,
            self.accelerator,
            token_budget=self.token_budget,
            desc=f"{self.name}: step {step_id}",
        )
        derivatives = directional_derivatives(
            model,
            rows,
            method=self.method,
            directions=self.directions,
            seed=int(generator.integers(2**63)),
            step=self.step,
        )
        return influence_scores(derivatives, everything.offsets, self.normalize)
