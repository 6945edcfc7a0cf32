"""A row or two through the model before training: what would fail at the first update fails now.

Each function is called on every rank for itself and makes no collective call, unless the engine makes one of a forward.
They are meant for :meth:`~dataflex.core.component.Component.check_run`, whose caller puts back what a forward disturbs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.errors import ComponentError, DataflexError
from dataflex.model.autocast import autocast
from dataflex.rows.columns import first_labelled_rows
from dataflex.scoring.embeddings import Pooling, hidden_state_embeddings
from dataflex.scoring.gradients.influence import require_finite_gradients
from dataflex.scoring.gradients.per_row import per_sample_gradients
from dataflex.scoring.gradients.sinks import Norms
from dataflex.scoring.gradients.uses import FAILURES
from dataflex.scoring.layer_embeddings import layer_embeddings
from dataflex.scoring.losses import per_sample_losses
from dataflex.scoring.own_loss import (
    model_name,
    own_losses,
    require_own_loss,
    require_rows_alone,
    without_gradients,
)
from dataflex.scoring.passes.row_pass import Collator, RowBatch, RowPass, without_replicas
from dataflex.scoring.stage_rows import StageCollator, refuse_stage

if TYPE_CHECKING:
    from accelerate import Accelerator

ROWS = 2
"""Rows of a trial: with one alone, a layer that mixes rows could not be told from one that does not."""


def trial_rows(dataset: Any) -> NDArray[np.int64]:
    """Returns the first rows that something can be learnt from: (2,), fewer where there are no more."""
    return first_labelled_rows(dataset, ROWS)


def try_losses(model: torch.nn.Module, dataset: Any, collator: Collator, accelerator: Accelerator | None) -> None:
    """Computes the loss of two rows, in one batch and alone, and has the model compute it.

    Raises:
        ComponentError: The model or the collator gives rows no loss of their own, it is not finite, or it is another
            one than the model trains on.
    """
    rows, staged = trial_rows(dataset), isinstance(collator, StageCollator)
    if not len(rows):
        return

    def losses(indices: NDArray[np.int64]) -> NDArray[np.float32]:
        return per_sample_losses(model, dataset, collator=collator, indices=indices, progress=False)

    with autocast(accelerator):
        batched_N = losses(rows)
        alone_N = np.concatenate([losses(rows[place : place + 1]) for place in range(len(rows))])
        own_N = [None] * len(rows) if staged else own_losses(model, dataset, collator, rows.tolist())
        require_own_loss(model, batched_N, alone_N, own_N)


def try_gradients(
    model: torch.nn.Module,
    dataset: Any,
    collator: Collator,
    accelerator: Accelerator | None,
    factor_dim: int | None = None,
) -> None:
    """Computes the gradients of two rows together, compares them with autograd's of each alone; and their losses.

    Args:
        model: The model to be trained.
        dataset: The tokenised dataset.
        collator: Makes a batch of tensors from a list of rows.
        accelerator: The run's accelerator, for mixed precision alone; None for none.
        factor_dim: See :func:`~dataflex.scoring.per_sample_gradients`.

    Raises:
        ComponentError: As :func:`try_losses`; a layer cannot be called, rows of a batch change each other in it, or a
            gradient is not finite; where weights are in shards, a trainable parameter has no rule.
    """
    refuse_stage(collator, "gradients")
    whole, model = model, without_replicas(model)
    try:
        _try_backward(model, dataset, collator, accelerator, factor_dim)
    except DataflexError:
        raise
    except FAILURES as error:  # of the model's own code, if the plain model raises as well
        plain = without_gradients(model, dataset, collator, int(trial_rows(dataset)[0]))
        if plain is None:
            raise
        raise ComponentError(
            f"{model_name(model)} cannot be differentiated in eval mode, in which rows are scored: {plain} -> use a "
            "strategy that needs no gradients"
        ) from error
    try_losses(whole, dataset, collator, accelerator)  # last: gradients tell in which layer rows change each other


def _try_backward(
    model: torch.nn.Module, dataset: Any, collator: Collator, accelerator: Accelerator | None, factor_dim: int | None
) -> None:
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


def try_embeddings(
    model: torch.nn.Module,
    dataset: Any,
    rows: NDArray[np.int64],
    collator: Collator,
    accelerator: Accelerator | None,
    pooling: Pooling,
) -> None:
    """Makes the embeddings of rows from the model's hidden states, in one batch and alone.

    Args:
        model: The model to be trained.
        dataset: The tokenised dataset.
        rows: Numbers of a row or two.
        collator: Makes a batch of tensors from a list of rows.
        accelerator: The run's accelerator, for mixed precision alone; None for none.
        pooling: See :func:`~dataflex.scoring.embeddings.pool`.

    Raises:
        ComponentError: The model gives no hidden states, or those of a row change with the rows beside it.
    """

    def embed(indices: NDArray[np.int64]) -> NDArray[np.float32]:
        return hidden_state_embeddings(
            model, dataset, collator=collator, indices=indices, pooling=pooling, progress=False
        )

    with autocast(accelerator):
        batched_NH = embed(rows)
        if len(rows) > 1:
            require_rows_alone(model, batched_NH, np.concatenate([embed(rows[i : i + 1]) for i in range(len(rows))]))


def try_layers(
    model: torch.nn.Module,
    dataset: Any,
    rows: NDArray[np.int64],
    layers: Sequence[int],
    collator: Collator,
    accelerator: Accelerator | None,
) -> None:
    """Makes vectors of rows from the hidden states of several layers, in one batch and alone.

    Args:
        model: The model to be trained.
        dataset: The tokenised dataset.
        rows: Numbers of a row or two.
        layers: See :func:`~dataflex.scoring.layer_embeddings.layer_embeddings`.
        collator: Makes a batch of tensors from a list of rows.
        accelerator: The run's accelerator, for mixed precision alone; None for none.

    Raises:
        ComponentError: The model gives no hidden states of these layers, or those of a row change with the rows beside
            it.
    """

    def embed(indices: NDArray[np.int64]) -> NDArray[np.float32]:
        return layer_embeddings(model, dataset, layers, collator=collator, indices=indices, progress=False)

    with autocast(accelerator):
        batched_ND = embed(rows)
        if len(rows) > 1:
            require_rows_alone(model, batched_ND, np.concatenate([embed(rows[i : i + 1]) for i in range(len(rows))]))
