"""A row or two through the model before training: what would fail at the first update fails now.

Each function is called on every rank for itself and makes no collective call, unless the engine makes one of a forward.
They are meant for :meth:`~dataflex.core.component.Component.check_run`, whose caller puts back what a forward disturbs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.scoring.autocast import autocast
from dataflex.scoring.columns import first_labelled_rows
from dataflex.scoring.gradient_sinks import Norms
from dataflex.scoring.influence import require_finite_gradients
from dataflex.scoring.losses import per_sample_losses
from dataflex.scoring.row_gradients import per_sample_gradients
from dataflex.scoring.row_pass import Collator, RowBatch, RowPass, without_replicas

if TYPE_CHECKING:
    from accelerate import Accelerator

ROWS = 2
"""Rows of a trial: with one alone, a layer that mixes rows could not be told from one that does not."""


def trial_rows(dataset: Any) -> NDArray[np.int64]:
    """Returns the first rows that something can be learnt from: (2,), fewer where there are no more."""
    return first_labelled_rows(dataset, ROWS)


def try_losses(model: torch.nn.Module, dataset: Any, collator: Collator, accelerator: Accelerator | None) -> None:
    """Computes the loss of two rows.

    Raises:
        ComponentError: The model or the collator gives rows no loss of their own, or it is not finite.
    """
    if len(rows := trial_rows(dataset)):
        with autocast(accelerator):
            per_sample_losses(model, dataset, collator=collator, indices=rows, progress=False)


def try_gradients(
    model: torch.nn.Module,
    dataset: Any,
    collator: Collator,
    accelerator: Accelerator | None,
    factor_dim: int | None = None,
) -> None:
    """Computes the gradients of two rows together, and compares them with autograd's of each row alone.

    Args:
        model: The model to be trained.
        dataset: The tokenised dataset.
        collator: Makes a batch of tensors from a list of rows.
        accelerator: The run's accelerator, for mixed precision alone; None for none.
        factor_dim: See :func:`~dataflex.scoring.per_sample_gradients`.

    Raises:
        ComponentError: Rows of a batch change each other in a layer, or a gradient is not finite; where weights are in
            shards, a trainable parameter has no rule.
    """
    model = without_replicas(model)
    rows = RowPass(dataset, collator, indices=trial_rows(dataset), progress=False, gradients=True)
    # Its dimensions are random, and a trial looks at no direction: any seed does.
    with autocast(accelerator), per_sample_gradients(model, None, factor_dim, 0) as gradients:

        def score(batch: RowBatch) -> torch.Tensor:
            sink = Norms(len(batch.labels()), next(model.parameters()).device)
            gradients.backward(batch, sink)
            require_finite_gradients(sink)
            if gradients.wrong(batch, sink):  # the whole model by row from now on, unless rows change each other
                sink.clear()
                gradients.backward(batch, sink)
            return sink.squares_B

        rows.values(model, score)
