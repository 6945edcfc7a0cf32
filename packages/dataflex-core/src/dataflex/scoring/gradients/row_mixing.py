"""Finding the layer in which rows of a batch change each other: the first that gives a row alone something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dataflex.model.autocast import allowed_rounding
from dataflex.scoring.gradients.alone import BatchLosses
from dataflex.scoring.gradients.replay import distance

See = Callable[[str, Any], None]


@torch.no_grad()
def mixing_layer(model: nn.Module, losses: BatchLosses) -> str | None:
    """Returns the name of the innermost layer where a row's numbers first depend on the other rows; None for none.

    Args:
        model: The model.
        losses: A batch of several rows; activations of two passes of it are in memory together.
    """
    allowed = allowed_rounding(model)
    row = int(losses.counts_B.argmax())
    losses.note_choices(allowed)
    alone: list[tuple[str, dict[str, torch.Tensor]]] = []
    with _events(model, lambda name, values: alone.append((name, _tensors(values)))):
        losses.alone(row).outputs()
    found: list[str] = []
    remaining = iter(alone)

    def compare(name: str, values: Any) -> None:
        if found:
            return
        expected_name, expected = next(remaining, ("", {}))
        if expected_name != name:  # another way through the model: the layer around it chose it
            found.append(name.rpartition(".")[0])
            return
        for place, value in _tensors(values).items():
            other = expected.get(place)
            if other is None:  # a mask, say, which a row without padding does not need
                continue
            own = losses.rows.of_row(value, losses.rows.layout(value, False), row)
            if own.shape == other.shape and not float(distance(own, other)) <= allowed:
                found.append(name)
                return

    with _events(model, compare):
        losses.outputs()
    return found[0] if found else None


@contextmanager
def _events(model: nn.Module, see: See) -> Any:
    """For the block, calls ``see`` with what modules are given, under the name of the one around, and what they return.

    What a module is given comes from the module around it, whose own operations made it.
    """
    stack: list[str] = []
    handles = []
    for name, module in model.named_modules():

        def entering(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            see(stack[-1] if stack else "", (args, kwargs))
            stack.append(name)

        def leaving(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            stack.pop()
            see(name, output)

        handles.append(module.register_forward_pre_hook(entering, with_kwargs=True))
        handles.append(module.register_forward_hook(leaving))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(values: Any, place: str = "") -> dict[str, torch.Tensor]:
    """Returns copies of the numbers among the values, by where they stand."""
    if isinstance(values, torch.Tensor):
        return {place: values.clone()} if values.is_floating_point() else {}
    if isinstance(values, Mapping):
        parts = list(values.items())
    else:
        parts = list(enumerate(values)) if isinstance(values, (tuple, list)) else []
    return {key: value for name, part in parts for key, value in _tensors(part, f"{place}.{name}").items()}
