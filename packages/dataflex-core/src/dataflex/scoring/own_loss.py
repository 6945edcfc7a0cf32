"""Whether the loss of a row is the one that the model trains on, and the row's alone.

Two things would falsify every score without a word: a model whose own loss is another one (some of ``transformers``
do not shift labels by a token), and a model in which a row's loss depends on the rows beside it or on its padding.
Both are seen on two rows, by the loss that the model itself computes of each alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.errors import ComponentError
from dataflex.model.undisturbed import undisturbed
from dataflex.model.unwrapped import pretrained_models
from dataflex.scoring.gradients.uses import FAILURES
from dataflex.scoring.passes.budget import is_out_of_memory
from dataflex.scoring.passes.row_pass import Collator

FLOAT32, HALF = 1e-3, 3e-2
"""How far two computations of a loss may be apart, as a part of it, for rounding alone."""


def require_own_loss(
    model: torch.nn.Module, batched_N: NDArray[np.float32], alone_N: NDArray[np.float32], own_N: Sequence[float | None]
) -> None:
    """Refuses a model whose rows have no loss of their own, or another one than the model trains on.

    Args:
        model: The model.
        batched_N: (N,) losses of rows of one batch.
        alone_N: (N,) losses of the same rows, each in a batch of its own.
        own_N: (N,) what :func:`own_losses` returned; None where the model gives none.

    Raises:
        ComponentError: With the numbers of the first such row.
    """
    name, close = model_name(model), closeness(model)
    for place, (batched, alone, own) in enumerate(zip(batched_N, alone_N, own_N, strict=True)):
        if own is not None and not np.isclose(alone, own, rtol=close, atol=close):
            raise ComponentError(
                f"{name} trains on another loss than the cross entropy of the next token: on row {place} of the trial "
                f"its own is {own:.4f}, that one {alone:.4f} -> use a causal model with the usual loss, or a strategy "
                "that does not score the model"
            )
        if not np.isclose(alone, batched, rtol=close, atol=close):
            raise ComponentError(
                f"{name} gives a row another loss beside other rows, padded to one length: row {place} of the trial "
                f"has {batched:.4f} there and {alone:.4f} alone -> use another version of the model's class, or a "
                "strategy that does not score the model"
            )


def require_rows_alone(model: torch.nn.Module, batched_NH: NDArray[np.float32], alone_NH: NDArray[np.float32]) -> None:
    """Refuses a model whose hidden states of a row change with the rows beside it.

    Args:
        model: The model.
        batched_NH: (N, H) embeddings of rows of one batch.
        alone_NH: (N, H) embeddings of the same rows, each in a batch of its own.

    Raises:
        ComponentError: They do.
    """
    close = closeness(model)
    if not np.allclose(batched_NH, alone_NH, rtol=0, atol=close):
        apart = float(np.abs(batched_NH - alone_NH).max())
        raise ComponentError(
            f"{model_name(model)} gives a row other hidden states beside other rows, padded to one length: "
            f"embeddings of two rows are {apart:.1e} apart, {close} allowed -> use another version of the model's "
            "class, or embeddings that are not made of hidden states"
        )


def model_name(model: torch.nn.Module) -> str:
    """Returns the name of the model's class, inside of any wrappers."""
    return next(map(type, [*pretrained_models(model), model])).__name__


def closeness(model: torch.nn.Module) -> float:
    """Returns how far two computations of a loss may be apart in the model's precision, as a part of it."""
    halves = any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    return HALF if halves or torch.is_autocast_enabled(next(model.parameters()).device.type) else FLOAT32


def own_losses(model: torch.nn.Module, dataset: Any, collator: Collator, rows: Sequence[int]) -> list[float | None]:
    """Returns the loss that the model itself computes of each row, alone and without gradients.

    None where it computes none: for a model that is not of ``transformers``, and one that adds another loss to it,
    as routers of experts do.

    Args:
        model: The model, wrapped or not.
        dataset: The tokenised dataset.
        collator: Makes a batch of tensors from a list of rows.
        rows: Numbers of the rows.
    """
    if not pretrained_models(model):
        return [None] * len(rows)
    found: list[float | None] = []
    with undisturbed(model), torch.no_grad():
        for row in rows:
            output = model(**own_inputs(model, collator, [dataset[int(row)]]), use_cache=False, return_dict=True)
            known = isinstance(output, Mapping) and output.get("aux_loss") is None
            loss = output.get("loss") if known else None
            found.append(None if loss is None else float(loss))
    return found


def without_gradients(model: torch.nn.Module, dataset: Any, collator: Collator, row: int) -> str | None:
    """Returns what the plain model raises when its own loss of a row goes back through it in eval mode, else None.

    Args:
        model: The model, with its trainable parameters requiring gradients again or not.
        dataset: The tokenised dataset.
        collator: Makes a batch of tensors from a list of rows.
        row: Number of the row.
    """
    inputs = own_inputs(model, collator, [dataset[int(row)]])
    parameters = list(model.parameters())
    flags = [p.requires_grad for p in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(parameter.is_floating_point())
        with undisturbed(model), torch.enable_grad():
            loss = model(**inputs, use_cache=False, return_dict=True)["loss"]
            torch.autograd.grad(loss, [p for p in parameters if p.requires_grad], allow_unused=True)
    except FAILURES as error:
        if is_out_of_memory(error):
            raise
        return f"it raises {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
    return None


def own_inputs(model: torch.nn.Module, collator: Collator, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns a batch of rows, with their labels, where the model is."""
    device = next(model.parameters()).device
    batch = collator([dict(row) for row in rows])  # collators change the rows they are given
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
