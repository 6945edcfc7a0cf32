"""What layers are given while gradients of rows are formed.

Letters: B rows of the batch, T tokens, M label positions.
"""

from __future__ import annotations

from typing import Any

import torch

from dataflex.model.unwrapped import output_embeddings, pretrained_models
from dataflex.scoring.gradients.row_map import RowMap


def picked_layers(model: torch.nn.Module) -> set[torch.nn.Module]:
    """Returns the modules that see label positions alone: the output layer, and what an adapter put into it."""
    outputs = output_embeddings(pretrained_models(model))
    return set() if outputs is None else set(outputs.modules())


def holds_output(model: torch.nn.Module, name: str, picked: set[torch.nn.Module]) -> bool:
    """Returns whether a module has the output layer inside of it: it then gives logits, as the whole model does."""
    module = model.get_submodule(name)
    return module not in picked and any(inner in picked for inner in module.modules())


def by_row(values: Any, rows: RowMap, picked: bool) -> Any:
    """Returns arguments without their graph, tensors by row where the rows are known."""
    if isinstance(values, dict):
        return {name: by_row(value, rows, picked) for name, value in values.items()}
    if isinstance(values, tuple):
        return tuple(by_row(value, rows, picked) for value in values)
    if not isinstance(values, torch.Tensor) or isinstance(values, torch.nn.Parameter):
        return values
    values = values.detach()
    if not picked and rows.rows > 1 and tuple(values.shape[:2]) == (1, rows.tokens):
        return values.expand(rows.rows, *values.shape[1:])
    return rows.by_row(values) if rows.knows(values, picked) else values
