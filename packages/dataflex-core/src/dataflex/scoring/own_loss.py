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
from dataflex.scoring.models import pretrained_models
from dataflex.scoring.row_pass import Collator
from dataflex.scoring.session import undisturbed

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
    name, close = _name(model), _close(model)
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
    close = _close(model)
    if not np.allclose(batched_NH, alone_NH, rtol=0, atol=close):
        raise ComponentError(
            f"{_name(model)} gives a row other hidden states beside other rows, padded to one length: embeddings of "
            f"two rows are {np.abs(batched_NH - alone_NH).max():.1e} apart, {close} allowed -> use another version of "
            "the model's class, or embeddings that are not made of hidden states"
        )


def _name(model: torch.nn.Module) -> str:
    return next(map(type, [*pretrained_models(model), model])).__name__


def _close(model: torch.nn.Module) -> float:
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
    device = next(model.parameters()).device
    found: list[float | None] = []
    with undisturbed(model), torch.no_grad():
        for row in rows:
            batch = collator([dataset[int(row)]])
            inputs = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in batch.items()}
            output = model(**inputs, use_cache=False, return_dict=True)
            known = isinstance(output, Mapping) and output.get("aux_loss") is None
            loss = output.get("loss") if known else None
            found.append(None if loss is None else float(loss))
    return found
