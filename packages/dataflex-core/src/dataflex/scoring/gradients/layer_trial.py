"""Which parameters' gradients the hooks of training form, seen on two rows before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from dataflex.core.errors import ComponentError
from dataflex.model.autocast import allowed_rounding, autocast, in_float32
from dataflex.scoring.gradients.projection import Projection
from dataflex.scoring.gradients.routes import Route
from dataflex.scoring.gradients.watched_layers import WatchedLayers
from dataflex.scoring.own_loss import own_inputs
from dataflex.scoring.passes.row_pass import Collator

if TYPE_CHECKING:
    from accelerate import Accelerator


def unlike_autograd(
    model: torch.nn.Module,
    projection: Projection,
    collator: Collator,
    rows: Sequence[Mapping[str, Any]],
    accelerator: Accelerator | None,
) -> list[str]:
    """Returns the parameters whose gradients by the hooks, added up over rows, are not those that autograd gives.

    One forward and one backward pass over two rows. A layer that mixes the rows' tokens, an expert that sees some of
    them, a weight that is used without a call of its layer: whatever the reason, its numbers differ.

    Args:
        model: The model, in eval mode and not wrapped by an engine that shards.
        projection: The parameters; they are compared as its ``factor_dim`` projects them.
        collator: Makes a batch of tensors from a list of rows.
        rows: Two rows with labels, or one.
        accelerator: For mixed precision.

    Raises:
        ComponentError: The model gives no loss that depends on what is trained.
    """
    rows = list(rows) if len(rows) > 1 else [*rows, *rows]
    inputs = own_inputs(model, collator, rows)
    sums: dict[int, torch.Tensor] = {}

    def take(route: Route, part: slice, grads_BX: torch.Tensor) -> None:
        found_X = grads_BX.sum(dim=0)
        sums[route.index] = sums[route.index] + found_X if route.index in sums else found_X

    layers = WatchedLayers(projection)
    layers.take, layers.refused = take, set()
    layers.begin(*inputs["labels"].shape)
    with layers.watching(), torch.enable_grad(), autocast(accelerator):
        allowed = allowed_rounding(model)
        loss = model(**inputs).loss
        if loss is None or not loss.requires_grad:
            raise ComponentError(
                f"{type(model).__name__} gives no loss that depends on what is trained, so sources have no gradients "
                "-> check finetuning_type, or use a mixer that does not look at gradients"
            )
        grads = torch.autograd.grad(loss, [r.parameter for r in projection.routes], allow_unused=True)
    expected = {
        route.index: _projected(projection, route, grad)
        for route, grad in zip(projection.routes, grads, strict=True)
        if grad is not None
    }
    whole = sum(float(found.square().sum()) for found in expected.values()) ** 0.5
    return sorted(
        layers.refused
        | {
            route.name
            for route in projection.routes
            if _apart(sums.get(route.index), expected.get(route.index), allowed, whole)
        }
    )


def _projected(projection: Projection, route: Route, grad: torch.Tensor) -> torch.Tensor:
    factors = projection.factors.get(route.index)
    with in_float32(grad):
        return grad.float().flatten() if factors is None else factors.project(grad.view(route.shape))


def _apart(found: torch.Tensor | None, expected: torch.Tensor | None, allowed: float, whole: float) -> bool:
    """Whether two gradients differ by more than rounding: of themselves, or of the whole where they are small in it."""
    if found is None or expected is None:
        other = expected if found is None else found
        return other is not None and bool(other.any())
    norm = float(torch.maximum(found.norm(), expected.norm()))
    return not float(torch.dist(found, expected)) <= max(10 * allowed * norm, allowed * whole)
