"""How far the training step of each row points the way that target rows want.

What LESS, its clustered form and NICE share. The mathematics is in :mod:`dataflex.scoring.influence`; here it meets
the run.

Letters: N rows, J target sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from dataflex.core.context import UpdateContext
from dataflex.scoring import (
    FactoredAdam,
    RowPass,
    ScoreStore,
    Sketch,
    TargetSet,
    influences,
    per_sample_gradients,
    read_moments,
    target_means,
    without_replicas,
)
from dataflex.scoring.fingerprint import dataset_digest, digest, model_digest, optimizer_digest
from dataflex.scoring.gradient_routes import Route
from dataflex.utils.logging import logger
from numpy.typing import NDArray

if TYPE_CHECKING:
    from accelerate import Accelerator

FORMS = ("adam", "sgd")
Score = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""``score(rows) -> (N, J)``"""


class GradientScores:
    """Scores rows by the cosine of their step with the mean of each target set's normalised gradients.

    Args:
        targets: Name -> tokenised dataset, or target sets as they are.
        collator: Makes a batch of tensors from a list of rows.
        accelerator: The run's accelerator.
        form: ``adam``: the step of the run's optimizer, which is the gradient before its first step; ``sgd``: the
            gradient.
        factor_dim: Dimensions that are kept of each side of a large matrix; None for all.
        proj_dim: Dimensions of the sketch; None for exact products.
        token_budget: Tokens at once; None for a default.
        folder: Where a long pass keeps what it has; None for nowhere.
        seed: Seed of the sketch.
        desc: What the progress bar says.
    """

    def __init__(
        self,
        targets: Mapping[str, Any] | Sequence[TargetSet],
        collator: Callable[[list[Any]], Mapping[str, torch.Tensor]],
        accelerator: Accelerator | None,
        *,
        form: str,
        factor_dim: int | None = None,
        proj_dim: int | None,
        token_budget: int | None,
        folder: str | None,
        seed: int,
        desc: str,
    ) -> None:
        if isinstance(targets, Mapping):
            targets = [TargetSet(name, rows) for name, rows in targets.items()]
        self.targets = list(targets)
        self.form, self.proj_dim, self.factor_dim = form, proj_dim, factor_dim
        self.folder, self.seed = folder, seed
        self._rows = RowPass(None, collator, accelerator, token_budget=token_budget, desc=desc)

    def scores(
        self, model: torch.nn.Module, dataset: Any, rows: NDArray[np.int64], context: UpdateContext
    ) -> NDArray[np.float32]:
        """Returns the scores of some rows: (N, J) in [-1, 1], NaN for a row without a label. Collective.

        Args:
            model: The model being trained.
            dataset: The train dataset.
            rows: (N,) its rows to score.
            context: The state of the run, with its optimizer.
        """
        with self.scoring(model, dataset, context) as score:
            return score(rows)

    @contextmanager
    def scoring(self, model: torch.nn.Module, dataset: Any, context: UpdateContext) -> Iterator[Score]:
        """Yields :meth:`scores` as a function of the rows, for who scores some, looks, and scores more. Collective.

        The gradients of the target sets are computed once.
        """
        accelerator = self._rows.accelerator
        model = without_replicas(model)
        with per_sample_gradients(model, accelerator, self.factor_dim, self.seed) as gradients:
            moments = read_moments(context.optimizer, gradients.routes) if self.form == "adam" else None
            if self.form == "adam" and moments is None:
                logger.info("the optimizer has no moments yet: rows are scored by their gradients")
            sketch = None
            if self.proj_dim is not None:
                sizes = [route.size for route in gradients.routes]
                device = next(model.parameters()).device if accelerator is None else accelerator.device
                sketch = Sketch(sizes, self.proj_dim, self.seed, device)
            means = target_means(gradients, model, self.targets, self._rows, sketch)
            direction = None if moments is None else FactoredAdam(moments, gradients.factors)  # after the target's own

            def score(rows: NDArray[np.int64]) -> NDArray[np.float32]:
                scored = self._pass(model, gradients.routes, dataset, rows, context)
                return influences(gradients, model, means, scored, direction, sketch)

            yield score

    def _pass(
        self,
        model: torch.nn.Module,
        routes: Sequence[Route],
        dataset: Any,
        rows: NDArray[np.int64],
        context: UpdateContext,
    ) -> RowPass:
        def fingerprint() -> str:
            return digest(
                model_digest(model, [route.parameter for route in routes]),  # they are frozen at the moment
                optimizer_digest(context.optimizer) if self.form == "adam" else "",
                dataset_digest(dataset),
                rows.tobytes().hex(),
                *(dataset_digest(target.dataset) for target in self.targets),
                *(str(part) for target in self.targets for part in (target.weights, target.groups, target.total)),
                self.form, self.proj_dim, self.factor_dim, self.seed, context.update,
            )  # fmt: skip

        base = self._rows
        store = None if self.folder is None else ScoreStore.of(self.folder, base.accelerator, fingerprint)
        return RowPass(dataset, base.collator, base.accelerator, rows, base.token_budget, desc=base.desc, store=store)
