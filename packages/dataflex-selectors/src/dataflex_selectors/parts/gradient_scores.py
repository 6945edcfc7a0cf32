"""How well the training step of each row agrees with the gradients of target rows.

LESS, its clustered form and NICE use this. The mathematics is in :mod:`dataflex.scoring.gradients.influence`; this
module applies it to a run.

Letters: N rows, J target sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from dataflex.core.context import UpdateContext
from dataflex.core.cost import Ahead, Amount, Cost, Work
from dataflex.core.errors import Problem
from dataflex.core.explain import Explanation
from dataflex.core.parameter_checks import count_or_null, one_of
from dataflex.core.ranks.agreement import on_every_rank
from dataflex.scoring import (
    FactoredAdam,
    KeptTargets,
    RowPass,
    ScoreStore,
    Sketch,
    TargetSet,
    influences,
    learning_rates,
    per_sample_gradients,
    read_moments,
    step_features,
    target_means,
    times_rates,
    without_replicas,
)
from dataflex.scoring.gradients.adam import Moments, require_adam
from dataflex.scoring.gradients.per_row import PerSampleGradients
from dataflex.scoring.gradients.routes import Route, gradient_routes
from dataflex.scoring.gradients.sinks import Direction
from dataflex.scoring.passes.fingerprint import dataset_digest, digest, model_digest, optimizer_digest
from dataflex.train.selector.base_selector import Selector
from dataflex.utils.logging import logger
from numpy.typing import NDArray

from dataflex_selectors.parts.named_pulls import explained_by_terms, joined_terms
from dataflex_selectors.parts.running_scores import RunningScores

if TYPE_CHECKING:
    from accelerate import Accelerator

FORMS = ("adam", "sgd")
AT_ONCE = 64
"""Rows that are explained at once."""
Score = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""``score(rows) -> (N, J)``"""


@dataclass(frozen=True)
class GradientSettings:
    """How gradients are compared: the user's parameters of these names.

    Attributes:
        gradient_type: ``adam``: the step of the run's optimizer, which is that of SGD before its first step; ``sgd``:
            the gradient. Both times the learning rate of each parameter's group.
        proj_dim: Dimensions of the sketch; None for exact products.
        token_budget: Tokens at once; None for a default.
        factor_dim: Dimensions that are kept of each side of a large matrix; None for all.
    """

    gradient_type: str
    proj_dim: int | None
    token_budget: int | None
    factor_dim: int | None = None

    def problems(self) -> list[Problem | None]:
        """Returns what is wrong with them."""
        return [
            one_of("gradient_type", self.gradient_type, FORMS),
            count_or_null("proj_dim", self.proj_dim, null="none"),
            count_or_null("factor_dim", self.factor_dim, null="none"),
            count_or_null("token_budget", self.token_budget),
        ]


@dataclass(frozen=True)
class RunGradients:
    """What forms the gradients of rows at an update.

    Attributes:
        model: The model, without replicas around it.
        rows: Forms the gradients.
        moments: The optimizer's; None where gradients are compared as they are.
        rates: The learning rate of each parameter.
        device: Where the gradients are.
    """

    model: torch.nn.Module
    rows: PerSampleGradients
    moments: dict[int, Moments] | None
    rates: Mapping[int, float]
    device: torch.device

    def direction(self) -> Direction | None:
        """Returns the step of a row, from its gradient. From now on projected gradients come scaled."""
        form = None if self.moments is None else FactoredAdam(self.moments, self.rows.factors)
        return times_rates(form, self.rates)


class GradientScores:
    """Scores rows by the cosine of their step with the mean of each target set's normalised gradients.

    Args:
        selector: The selector: its rows, its seed, its collator, and its folder for the results of a long pass.
        settings: What is compared.
        targets: The target sets.
        context: The state of the run, with its optimizer.
    """

    def __init__(
        self, selector: Selector, settings: GradientSettings, targets: Sequence[TargetSet], context: UpdateContext
    ) -> None:
        self._selector, self._settings, self._targets, self._context = selector, settings, list(targets), context
        self._kept: KeptTargets | None = None
        self._rows = RowPass(
            selector.dataset,
            selector.data_collator,
            selector.accelerator,
            token_budget=settings.token_budget,
            desc=f"{selector.name}: step {context.step}",
        )

    def scores(self, model: torch.nn.Module, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the scores of some rows: (N, J) in [-1, 1], NaN for a row without a label. Collective.

        Args:
            model: The model being trained.
            rows: (N,) rows of the train dataset to score.
        """
        with self.scoring(model) as score:
            return score(rows)

    @contextmanager
    def scoring(self, model: torch.nn.Module) -> Iterator[Score]:
        """Yields :meth:`scores` as a function of the rows, for selectors that score rows in several rounds. Collective.

        The gradients of the target sets are computed once.
        """
        with self._gradients(model) as found:
            sketch = self._sketch(found)
            if self._context.explains:
                self._kept = self._keeping(found, sketch)
            means = target_means(found.rows, found.model, self._targets, self._rows, sketch, self._kept)
            direction = found.direction()  # after the target's own

            def score(rows: NDArray[np.int64]) -> NDArray[np.float32]:
                store = self._store(found.model, found.rows.routes, found.rates, rows)
                scored = replace(self._rows, indices=rows, store=store)
                return influences(found.rows, found.model, means, scored, direction, sketch)

            yield score

    def explained(
        self, model: torch.nn.Module, rows: NDArray[np.int64], running: RunningScores, places: list[int] | None = None
    ) -> Explanation | None:
        """Returns which target rows pulled the scores of some rows at this update; None where none were kept.

        The vectors of the target rows, which :meth:`scoring` kept, are forgotten. Collective.

        Args:
            model: The model being trained, with the weights that were scored.
            rows: (S,) rows of the train dataset, scored or not; the gradients of these rows alone are computed.
            running: The averages over the updates: a row's target rows are those of the set with its highest.
            places: The number of each target set in ``running``; None where they are all of its sets.
        """
        kept, self._kept = self._kept, None
        if kept is None:
            return None
        parts = []
        with self._gradients(model) as found:
            direction = found.direction()
            for first in range(0, len(rows), AT_ONCE):
                scored = replace(self._rows, indices=rows[first : first + AT_ONCE], max_rows=AT_ONCE, progress=False)
                steps_SK = step_features(found.rows, found.model, scored, kept, direction)
                parts.append(kept.terms(steps_SK, self._rows.accelerator))
        sets = [joined_terms([part[target.name] for part in parts]) for target in self._targets]
        found_SJ = np.stack([terms.totals for terms in sets], axis=1)
        best_S = running.best_sets(rows, list(range(len(sets))) if places is None else places, found_SJ)
        return explained_by_terms(self._targets, sets, best_S, exact=kept.exact, dim=kept.dim)

    def _keeping(self, found: RunGradients, sketch: Sketch | None) -> KeptTargets:
        sizes = {
            target.name: len(target.dataset) if target.groups is None else int(target.groups.max(initial=-1)) + 1
            for target in self._targets
        }
        return KeptTargets(
            sizes,
            {target.name: target.count for target in self._targets},
            [route.size for route in found.rows.routes],
            self._selector.seed,
            found.device,
            sketch,
        )

    def _sketch(self, found: RunGradients) -> Sketch | None:
        if self._settings.proj_dim is None:
            return None
        sizes = [route.size for route in found.rows.routes]
        return Sketch(sizes, self._settings.proj_dim, self._selector.seed, found.device)

    def _gradients(self, model: torch.nn.Module) -> AbstractContextManager[RunGradients]:
        seed = self._selector.seed
        return gradients_at(model, self._settings, self._context.optimizer, self._rows.accelerator, seed)

    def _store(
        self,
        model: torch.nn.Module,
        routes: Sequence[Route],
        rates: Mapping[int, float],
        rows: NDArray[np.int64],
    ) -> ScoreStore | None:
        """Returns the store for the results of a pass over some rows."""
        settings, context = self._settings, self._context

        def fingerprint() -> str:
            return digest(
                model_digest(model, [route.parameter for route in routes]),  # frozen inside of the block
                optimizer_digest(context.optimizer) if settings.gradient_type == "adam" else "",
                sorted(rates.items()),
                dataset_digest(self._selector.dataset),
                rows.tobytes().hex(),
                *(dataset_digest(target.dataset) for target in self._targets),
                *(str((t.weights, t.groups, t.total, t.count)) for t in self._targets),
                settings.gradient_type, settings.proj_dim, settings.factor_dim, self._selector.seed, context.update,
            )  # fmt: skip

        selector = self._selector
        return ScoreStore.of(selector.cache_dir, selector.accelerator, fingerprint, selector.cache_owner)


@contextmanager
def gradients_at(
    model: torch.nn.Module,
    settings: GradientSettings,
    optimizer: torch.optim.Optimizer | None,
    accelerator: Accelerator | None,
    seed: int,
) -> Iterator[RunGradients]:
    """Yields what forms the gradients of rows, and their steps. Collective.

    Args:
        model: The model being trained, as an update gets it.
        settings: What is compared.
        optimizer: The training optimizer, for its moments and rates.
        accelerator: The run's accelerator.
        seed: Of projections.
    """
    model = without_replicas(model)
    with per_sample_gradients(model, accelerator, settings.factor_dim, seed) as gradients:
        moments = None
        if settings.gradient_type == "adam":
            moments = read_moments(optimizer, gradients.routes)
            if moments is None:
                logger.info("the optimizer has no moments yet: rows are scored by their gradients")
        rates = learning_rates(optimizer, gradients.routes)
        device = next(model.parameters()).device if accelerator is None else accelerator.device
        yield RunGradients(model, gradients, moments, rates, device)


class ComparesSteps(Selector):
    """Base of selectors that score rows by :class:`GradientScores`.

    Attributes:
        settings: What is compared; set by the constructor.
    """

    reads_batches = True
    settings: GradientSettings

    asks = "gradients"

    def check_optimizer(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Refuses an optimizer without the moments that ``gradient_type: adam`` needs. See the base class."""
        require_optimizer(model, optimizer, self.settings, self.accelerator)


def gradient_cost(params: Mapping[str, Any], ahead: Ahead, scored: Amount, target: Amount, summed: Amount) -> Cost:
    """Returns what a scoring by :class:`GradientScores` costs: gradients of the target's rows and of those scored.

    Args:
        params: The component's, with those of :class:`GradientSettings` that it has.
        ahead: The run.
        scored: The rows to score.
        target: The rows of the target whose gradients are formed.
        summed: The rows that have sums over the updates (:mod:`dataflex_selectors.parts.running_scores`).
    """
    adam, kept = params["gradient_type"] == "adam", params["proj_dim"] or ahead.trainable
    factor_dim = params.get("factor_dim")
    if factor_dim is not None:
        kept = min(kept, factor_dim * int(ahead.trainable**0.5))
    return Cost(
        Work(gradients=scored + target, factor_dim=factor_dim),
        device_bytes=4.0 * ahead.sets * kept + (8.0 * ahead.trainable if adam and factor_dim is None else 0),
        host_bytes=8.0 * ahead.trainable,
        state_bytes=(8 + 16 * ahead.sets) * summed.rows,
        cache_bytes=4.0 * ahead.sets * scored.rows,
    )


def loss_targets(sets: Mapping[str, Any]) -> list[TargetSet]:
    """Returns the sets of :func:`~dataflex.scoring.read_target` as what gradients are compared with: row by row."""
    return [TargetSet(name, rows) for name, rows in sets.items()]


def require_optimizer(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: GradientSettings,
    accelerator: Accelerator | None,
) -> None:
    """Refuses an optimizer whose step cannot be computed for a single row. Called before the first step. Collective.

    Raises:
        ComponentError: The learning rate of a parameter is not known, or, with ``adam``, its moments are not.
    """
    routes = gradient_routes(without_replicas(model))
    adam = settings.gradient_type == "adam"

    def alone() -> None:
        learning_rates(optimizer, routes)
        if adam:
            require_adam(optimizer, routes)

    on_every_rank(accelerator, alone)  # sharded moments are read by all ranks, or by none
    if adam:
        read_moments(optimizer, routes)
