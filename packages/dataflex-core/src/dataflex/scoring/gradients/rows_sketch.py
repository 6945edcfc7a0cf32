"""The mean gradient of rows that are not trained on, kept as the gradients of training are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.errors import ComponentError
from dataflex.core.ranks.by_row import sum_over_ranks
from dataflex.interfaces.source_gradients import TOKEN
from dataflex.model.label_logits import IGNORED
from dataflex.scoring.gradients.influence import require_finite_gradients
from dataflex.scoring.gradients.per_row import per_sample_gradients
from dataflex.scoring.gradients.projection import Projection
from dataflex.scoring.gradients.routes import Route
from dataflex.scoring.gradients.sinks import Sink
from dataflex.scoring.passes.row_pass import RowBatch, RowPass, without_replicas

if TYPE_CHECKING:
    from accelerate import Accelerator


class _Kept(Sink):
    """Takes the gradients of the parameters that a projection keeps."""

    def __init__(self, rows: int, device: torch.device, projection: Projection) -> None:
        super().__init__(rows, device)
        self._projection = projection
        self.features_BD = projection.empty(rows, device)

    def clear(self) -> None:
        """Forgets them."""
        super().clear()
        self.features_BD.zero_()

    def take(self, route: Route, rows: slice, vectors_BD: torch.Tensor) -> None:
        """Adds one parameter's."""
        self._projection.add(route.index, rows, vectors_BD, self.features_BD)


class RowsSketcher:
    """See :class:`~dataflex.interfaces.source_gradients.SketchesRows`.

    Args:
        projection: Returns what the gradients of training are kept by.
        accelerator: The run's accelerator.
    """

    def __init__(self, projection: Callable[[], Projection], accelerator: Accelerator) -> None:
        self._projection, self._accelerator = projection, accelerator

    def mean_of(
        self, model: torch.nn.Module, dataset: Any, collator: Callable[[list[Any]], Any], desc: str
    ) -> NDArray[np.float64]:
        """See :meth:`~dataflex.interfaces.source_gradients.SketchesRows.mean_of`."""
        projection, accelerator, model = self._projection(), self._accelerator, without_replicas(model)
        by_tokens, device = projection.wanted.unit == TOKEN, accelerator.device
        rows = RowPass(dataset, collator, accelerator, desc=desc, gradients=True)
        total_D, count = np.zeros(projection.dim), 0.0
        with per_sample_gradients(model, accelerator, projection.wanted.factor_dim, projection.seed) as gradients:

            def score(batch: RowBatch) -> tuple[NDArray[np.float64], float]:
                labels_BT = batch.labels()
                sink = _Kept(len(labels_BT), device, projection)
                gradients.backward(batch, sink, total=by_tokens)
                require_finite_gradients(sink)
                counts_B = (labels_BT[:, 1:] != IGNORED).sum(dim=1)
                counted = float(counts_B.sum() if by_tokens else (counts_B > 0).sum())
                return sink.features_BD.sum(dim=0).cpu().numpy().astype(np.float64), counted

            for batch, (sum_D, counted) in rows.results(model, score):
                if not batch.repeated:
                    total_D, count = total_D + sum_D, count + counted
        found = sum_over_ranks(np.append(total_D, count), accelerator)
        if not found[-1] > 0:
            raise ComponentError(
                f"{desc}: no row has a label to predict -> check the evaluation rows, or use a larger cutoff_len if it "
                "cuts the answers off"
            )
        return np.asarray(found[:-1] / found[-1])
