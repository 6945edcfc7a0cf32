"""Gradients of any parameter by row: the module that uses it is called again for each row, on what it was given.

While a batch passes, hooks keep what the module was given and what arrives as the gradient of what it returned. After
the backward pass the module's own forward runs for one row at a time, with its parameters requiring gradients, and
autograd gives theirs. No formula is needed, and whatever the module does is in it: routers, experts that share one
matrix product among the tokens of all rows, scans, states that are kept for the call.

It is exact where a row alone gives what it gave among others, which is checked on every call.

Letters: B rows of the batch, D numbers of a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from dataflex.scoring.gradients.routes import Route
from dataflex.scoring.gradients.row_choices import Choices
from dataflex.scoring.gradients.row_map import Layout, RowMap
from dataflex.scoring.gradients.uses import FAILURES, requiring
from dataflex.scoring.passes.budget import is_out_of_memory

Gradients = list[torch.Tensor | None]
"""One row's gradient of each parameter of a unit, in its shape; None where the row does not reach it."""


class NotByRowError(Exception):
    """A module cannot be called row by row."""


@dataclass
class _Call:
    """One call of a module: its inputs as leaves of a tree, its outputs, and the gradients of these by place.

    ``choices`` are what it chose for the batch, once they were asked for. ``kept`` are the tensors among inputs and
    outputs with their versions of then, which an operation in place raises.
    """

    leaves: list[Any]
    layouts: list[Layout]
    spec: TreeSpec
    kept: list[tuple[torch.Tensor, int]]
    choices: Choices | None = None
    outputs: dict[int, torch.Tensor] = field(default_factory=dict)
    grads: dict[int, torch.Tensor] = field(default_factory=dict)


class Unit:
    """A module that is called by row.

    Args:
        name: Its name in the model.
        module: The module.
        routes: The parameters whose gradients it gives.
        picked: Whether it sees label positions alone.
        copied: Whether its inputs are changed in place later.

    Attributes:
        changed: Whether inputs that were kept have been changed in place.
    """

    def __init__(self, name: str, module: nn.Module, routes: Sequence[Route], picked: bool, copied: bool) -> None:
        self.name, self.module, self.routes = name, module, list(routes)
        self.changed = False
        self._picked, self._copied, self._chooses = picked, copied, True
        self._rows: RowMap
        self._open: list[_Call] = []
        self._calls: list[_Call] = []
        self._apart: list[torch.Tensor] = []

    def begin(self, rows: RowMap) -> None:
        """Forgets the last batch."""
        self._rows, self.changed = rows, False
        self._open, self._calls, self._apart = [], [], []

    def watch(self, active: Callable[[], bool]) -> list[RemovableHandle]:
        """Puts hooks on the module.

        Args:
            active: Whether the calls of this moment are those of a batch.
        """

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            if active():
                self._open.append(self._given(args, kwargs))

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if not active():
                return None
            call = self._open.pop()
            return self._returned(call, output) if torch.is_grad_enabled() else None  # it may choose without gradients

        return [
            self.module.register_forward_pre_hook(before, with_kwargs=True),
            self.module.register_forward_hook(after, with_kwargs=True),
        ]

    def reached(self) -> bool:
        """Returns whether any gradient came to one of its outputs."""
        return any(call.grads for call in self._calls)

    def gradients(self, row: int, context: Callable[[], AbstractContextManager[None]], allowed: float) -> Gradients:
        """Returns the gradients of one row.

        Args:
            row: Its place in the batch.
            context: Mixed precision.
            allowed: How far numbers may be apart for rounding alone, as a share.

        Raises:
            NotByRowError: The module cannot be called for one row alone, or gives it something else.
        """
        parameters = [route.parameter for route in self.routes]
        found: Gradients = [None] * len(parameters)
        with torch.enable_grad(), requiring(parameters), context():
            for call in self._calls:
                if call.grads:
                    outputs, grads = self._again(call, row, allowed)
                    if outputs:
                        each = torch.autograd.grad(outputs, parameters, grads, allow_unused=True)
                        found = [_sum(total, grad) for total, grad in zip(found, each, strict=True)]
        torch.clear_autocast_cache()  # it has weights that require a gradient
        return found

    def apart(self) -> torch.Tensor | None:
        """Returns how far rows alone were from the batch, as a share; None if nothing was called."""
        return torch.stack(self._apart).max() if self._apart else None

    def _given(self, args: Any, kwargs: Any) -> _Call:
        values, spec = tree_flatten((args, kwargs))
        leaves, layouts, kept = [], [], []
        for value in values:
            tensor = _is_activation(value)
            layouts.append(self._rows.layout(value, self._picked) if tensor else Layout.SHARED)
            if tensor:
                value = value.detach().clone() if self._copied else value.detach()
                kept.append((value, value._version))
            leaves.append(value)
        return _Call(leaves, layouts, spec, kept)

    def _returned(self, call: _Call, output: Any) -> Any:
        values, spec = tree_flatten(output)
        places = [k for k, v in enumerate(values) if isinstance(v, torch.Tensor) and v.is_floating_point()]
        for place in places:
            value = values[place]
            if not value.requires_grad:  # the first layer that is trained; a leaf may not be changed in place
                value = value.detach().requires_grad_().clone()
            elif self._copied:
                value = value.clone()
            elif len(places) > 1:  # one may come from another: what arrives at its alias comes from outside alone
                value = value.view_as(value)
            if self._rows.shared(value) and not self._picked:  # its gradient would be summed over rows
                value = value.expand(self._rows.rows, -1, -1)
            values[place] = value
            call.outputs[place] = value.detach().clone() if self._copied else value.detach()
            call.kept.append((call.outputs[place], call.outputs[place]._version))
            value.register_hook(_keeping(call.grads, place))
        self._calls.append(call)
        return tree_unflatten(values, spec)

    def _again(self, call: _Call, row: int, allowed: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Calls the module for one row and returns its outputs and their gradients."""
        rows = self._rows
        if any(tensor._version != version for tensor, version in call.kept):
            self.changed = True
            raise NotByRowError("what it was given or returned is changed in place")
        leaves = [
            rows.of_row(v, layout, row) if isinstance(v, torch.Tensor) else v
            for v, layout in zip(call.leaves, call.layouts, strict=True)
        ]
        try:
            if call.choices is None:
                call.choices = Choices(rows, self._picked, allowed)
                if self._chooses and rows.rows > 1:
                    with call.choices.noted():
                        self._run(call, call.leaves)
                    self._chooses = bool(call.choices)
            with call.choices.again(row):
                values, _ = tree_flatten(self._run(call, leaves))
        except FAILURES as error:
            if is_out_of_memory(error):
                raise
            raise NotByRowError(str(error)) from error
        outputs, grads = [], []
        for place, grad in call.grads.items():
            layout = rows.layout(call.outputs[place], self._picked, result=True)
            if rows.rows > 1 and layout is Layout.SHARED:
                raise NotByRowError("rows cannot be told apart in its outputs")
            expected = rows.of_row(call.outputs[place], layout, row)
            if place >= len(values) or values[place].shape != expected.shape:
                raise NotByRowError("it returns something else for one row")
            self._apart.append(distance(values[place].detach(), expected))
            if values[place].requires_grad:
                outputs.append(values[place])
                grads.append(rows.of_row(grad, layout, row))
        return outputs, grads

    def _run(self, call: _Call, leaves: list[Any]) -> Any:
        if self._copied:  # the module itself may be what changes them
            leaves = [v.clone() if _is_activation(v) else v for v in leaves]
        args, kwargs = tree_unflatten(leaves, call.spec)
        return self.module.forward(*args, **kwargs)


def _keeping(grads: dict[int, torch.Tensor], place: int) -> Callable[[torch.Tensor], None]:
    def keep(grad: torch.Tensor) -> None:
        grads[place] = grad.detach()

    return keep


def _is_activation(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter)


def _sum(total: torch.Tensor | None, grad: torch.Tensor | None) -> torch.Tensor | None:
    if total is None or grad is None:
        return grad if total is None else total
    return total + grad


def distance(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Returns the length of the difference as a share of the expected length."""
    same = (found == expected) | (found.isnan() & expected.isnan())
    difference = torch.where(same, 0.0, found - expected).float().norm()
    length = torch.where(expected.isfinite(), expected, 0.0).float().norm()
    return torch.div(difference, length + torch.finfo(torch.float32).tiny)
