"""The exact derivative of every row's loss along a direction, by forward-mode differentiation.

One pass costs about two forwards. There is no step length, and no weight is changed: weights are given to the model as
arguments (``torch.func.functional_call``). It needs a formula in every kernel, so attention runs in torch's plain
implementation, whose memory grows with the square of the row's length; fused kernels (FlashAttention, Liger, quantised
matrices) have none and are refused.

A kernel of another package may drop the derivative silently. So for the first few directions, the derivative of one row
is compared with that from a backward pass. Other rows are not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from dataflex.core.errors import ComponentError
from dataflex.model.autocast import autocast
from dataflex.scoring import (
    RowBatch,
    RowPass,
    label_positions,
    logits_at_labels,
    row_lengths,
    sample_means,
    token_losses,
)
from dataflex.scoring.gradients.loss_scale import TOKEN_SCALE, computes_in_fp16
from numpy.typing import NDArray
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from dataflex_selectors.parts.weight_directions import Directions, is_narrow

Weights = dict[str, torch.Tensor]

_COMPARED = 4  # one direction may not show a lost part; four nearly always do
_TOLERANCE_32_BITS = 0.01  # of the gradient's norm: allows for matrix products in TF32
_TOLERANCE_16_BITS = 0.2  # rounding in bf16 makes up to 0.1


def exact_derivatives(model: torch.nn.Module, drawn: Directions) -> Callable[[RowPass, int], NDArray[np.float64]]:
    """Returns ``along(rows, direction)``, the derivatives of the rows' mean token losses: (N,), NaN without labels.

    Args:
        model: A causal language model; ``along`` runs inside of :func:`~dataflex.scoring.undisturbed`.
        drawn: Its directions.
    """
    given = _GivenWeights(model)

    def along(rows: RowPass, direction: int) -> NDArray[np.float64]:
        tangents = _tangents(drawn, direction)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _losses_of(given, rows) as losses, _explained():

            def score(batch: RowBatch) -> torch.Tensor:
                def of_weights(weights: Weights) -> torch.Tensor:
                    given.weights = weights
                    return losses(batch)

                weights = {name: parameter.detach() for name, parameter in drawn.parameters.items()}
                with _no_leaves():
                    change_B: torch.Tensor = jvp(of_weights, (weights,), (tangents,))[1]
                labelled_B = _labelled(batch).to(change_B.device)
                return change_B.float().masked_fill(~change_B.isfinite() & labelled_B, torch.inf)

            found = rows.values(given, score).astype(np.float64)
        _require_finite(found, rows)
        if direction < _COMPARED:
            _compare(model, rows, drawn, tangents, found)
        return found

    return along


class _GivenWeights(torch.nn.Module):
    """The model as a function of some of its weights."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.weights: Weights = {}

    def forward(self, **inputs: Any) -> Any:
        return functional_call(self.model, self.weights, (), inputs)


@contextmanager
def _no_leaves() -> Iterator[None]:
    """Inside of it, ``requires_grad_`` does nothing: gradient checkpointing hooks it to embeddings, and jvp refuses it.

    Nothing goes back through the model there, so the mark has no use.
    """
    with patch.object(torch.Tensor, "requires_grad_", lambda tensor, requires_grad=True: tensor):
        yield


def _tangents(drawn: Directions, direction: int) -> Weights:
    pairs = zip(drawn.parameters.items(), drawn.vector(direction), strict=True)
    return {name: xi.to(parameter.dtype) for (name, parameter), xi in pairs}


@contextmanager
def _losses_of(model: torch.nn.Module, rows: RowPass) -> Iterator[Callable[[RowBatch], torch.Tensor]]:
    """Yields the function from a batch to (B,) mean token losses, which autograd sees through."""
    with logits_at_labels(model) as forward:

        def losses(batch: RowBatch) -> torch.Tensor:
            labels_BT = batch.labels()
            positions_M, targets_M = label_positions(labels_BT)
            with autocast(rows.accelerator):
                logits_MV = forward(batch.inputs, positions_M, labels_BT.shape)
            losses_M = token_losses(logits_MV, targets_M.to(logits_MV.device))
            return sample_means(losses_M, positions_M.to(losses_M.device), labels_BT.shape)

        yield losses


def _labelled(batch: RowBatch) -> torch.Tensor:
    labels_BT = batch.labels()
    labelled_B = torch.zeros(len(labels_BT), dtype=torch.bool)
    labelled_B[label_positions(labels_BT)[0] // labels_BT.shape[1]] = True
    return labelled_B


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        if not any(word in str(error) for word in ("forward AD", "forward mode", "jvp")):
            raise
        raise ComponentError(
            f"the model cannot be differentiated forward: {str(error).splitlines()[0]} -> set method: "
            "finite_difference, or attn_implementation: sdpa or eager and no fused kernels"
        ) from error


def _require_finite(found: NDArray[np.float64], rows: RowPass) -> None:
    bad = np.flatnonzero(np.isinf(found))
    if len(bad):
        raise ComponentError(
            f"the derivative of the loss is NaN or infinite for {len(bad)} of {len(found)} rows, first for row "
            f"{rows.rows()[bad[0]]} -> the weights have probably diverged: lower the learning rate"
        )


def _compare(
    model: torch.nn.Module, rows: RowPass, drawn: Directions, tangents: Mapping[str, torch.Tensor], found: NDArray[Any]
) -> None:
    """Compares the derivative of the shortest row that has labels with the one from its gradient. Collective."""
    labelled = np.flatnonzero(~np.isnan(found))
    if not len(labelled):
        return
    place = labelled[np.argmin(row_lengths(rows.dataset, rows.rows()[labelled]))]
    one = replace(rows, indices=rows.rows()[[place]], progress=False)
    with _losses_of(model, one) as losses:

        def product(batch: RowBatch, scale: float) -> torch.Tensor:
            with torch.enable_grad():
                loss = losses(batch).sum() * scale
                trained = list(drawn.parameters.values())
                # A layer that the row does not reach has no gradient; where it reaches none, autograd refuses.
                grads = torch.autograd.grad(loss, trained, allow_unused=True) if loss.requires_grad else []
            given = {name: grad for name, grad in zip(drawn.parameters, grads, strict=False) if grad is not None}
            pairs = [(grad.float() / scale, tangents[name].float()) for name, grad in given.items()]
            inner = sum(float((g * xi).sum()) for g, xi in pairs)
            return torch.tensor([[inner, sum(float(g.square().sum()) for g, _ in pairs) ** 0.5]])

        def score(batch: RowBatch) -> torch.Tensor:
            with autocast(rows.accelerator):
                small = computes_in_fp16(model)  # small numbers would become 0 in the backward
            found = product(batch, TOKEN_SCALE if small else 1.0)
            return found if found.isfinite().all() or not small else product(batch, 1.0)

        inner, norm = one.values(model, score)[0]
    if not np.isfinite([inner, norm]).all():
        raise ComponentError(
            f"the gradient of row {rows.rows()[place]} is NaN or infinite, so derivatives cannot be checked -> "
            "set method: finite_difference, or train in bf16 instead of fp16"
        )
    tolerance = _TOLERANCE_16_BITS if is_narrow(model, rows.accelerator) else _TOLERANCE_32_BITS
    if abs(found[place] - inner) > tolerance * norm + 1e-6:
        raise ComponentError(
            f"forward differentiation gave {found[place]:.4g} for row {rows.rows()[place]}, and its gradient gives "
            f"{inner:.4g}: a kernel of the model drops the derivative -> set method: finite_difference"
        )
