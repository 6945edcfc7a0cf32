"""Gradients of rows while training goes by: formed in the forward and backward pass that training makes anyway.

A linear layer's gradient is the sum over rows of outer products of what its output gets back and what it was given.
Hooks on the layers see both, so each row's part of it is there for some products more, and no second pass. Nothing that
training computes is touched: the hooks return nothing, and what they keep is kept beside the graph.

A layer's input is kept as autograd keeps its own (``save_for_backward``): under gradient checkpointing it is then not
kept but computed again, when the layer's own is. Such a layer is called a second time in the backward pass, outside of
the graph that gradients run through; its second call is not counted, as nothing arrives there.

Letters: B rows of the micro-batch, T tokens, D numbers of a sketch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from dataflex.core.errors import ComponentError
from dataflex.model.autocast import in_float32
from dataflex.scoring.gradients.per_row import MOST_NUMBERS
from dataflex.scoring.gradients.projection import Projection
from dataflex.scoring.gradients.routes import Route, Use
from dataflex.scoring.gradients.rules import Call

Take = Callable[[Route, slice, torch.Tensor], None]
"""``take(route, rows, grads_BX)``: is given the gradients of a parameter for some rows of the micro-batch."""


class WatchedLayers:
    """The hooks on the layers of a model.

    Args:
        projection: Which parameters are looked at.

    Attributes:
        take: Is given what arrives.
        rows: B of the micro-batch; 0 where none is looked at.
        tokens: T of the micro-batch.
        refused: Where it is not None, the names of parameters whose layers' rows are unknown are added to it; else
            such a layer is an error.
    """

    def __init__(self, projection: Projection) -> None:
        self._by_module: dict[torch.nn.Module, list[tuple[Route, Use]]] = {}
        for route in projection.routes:
            for use in route.uses:
                self._by_module.setdefault(use.module, []).append((route, use))
        self.take: Take = lambda route, rows, grads_BX: None
        self.rows = self.tokens = 0
        self.refused: set[str] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside of it, the layers are looked at."""
        with ExitStack() as hooks:
            for module in self._by_module:
                hooks.callback(module.register_forward_hook(self._called, with_kwargs=True).remove)
            yield

    def begin(self, rows: int, tokens: int) -> None:
        """A micro-batch begins, of B rows of T tokens."""
        self.rows, self.tokens = rows, tokens

    def end(self) -> None:
        """The micro-batch is over."""
        self.rows = self.tokens = 0

    def _called(self, module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self.rows or not torch.is_grad_enabled():
            return
        if not isinstance(output, torch.Tensor) or not output.requires_grad:
            return
        uses = self._by_module[module]
        given = args[0] if len(args) == 1 and not kwargs else kwargs.get("input") if not args else None
        if not isinstance(given, torch.Tensor):
            self._unknown(uses, "arguments that are not one tensor")
            return
        kept = _kept(given.detach())
        output.register_hook(  # type: ignore[no-untyped-call]
            lambda grads: self._arrived(module, uses, kept, grads)
        )

    @torch.no_grad()
    def _arrived(self, module: torch.nn.Module, uses: list[tuple[Route, Use]], kept: Any, grads: torch.Tensor) -> None:
        inputs = self._by_row(kept.grad_fn.saved_tensors[0], of_ids=isinstance(module, torch.nn.Embedding))
        grads_BSO = self._by_row(grads)
        if inputs is None or grads_BSO is None:
            self._unknown(uses, f"outputs of shape {tuple(grads.shape)} for {self.rows} rows of {self.tokens} tokens")
            return
        call = Call(self.rows, (inputs,), {})
        for route, use in uses:
            assert use.rule is not None, "a parameter without a rule is not watched"
            step = max(1, MOST_NUMBERS // route.size)
            for start in range(0, self.rows, step):
                rows = slice(start, min(start + step, self.rows))
                with in_float32(grads_BSO):
                    self.take(route, rows, use.rule(module, call.part(rows), grads_BSO[rows]))

    def _by_row(self, values: torch.Tensor, of_ids: bool = False) -> torch.Tensor | None:
        """Returns (B, S, ...) of what a layer was given or gets back; None where its rows are not known."""
        least = 2 if of_ids else 3
        if values.ndim >= least and len(values) == self.rows:
            return values
        if values.ndim == least - 1 and len(values) == self.rows * self.tokens:
            return values.view(self.rows, self.tokens, *values.shape[1:])
        return values.unsqueeze(1) if values.ndim == least - 1 and len(values) == self.rows else None

    def _unknown(self, uses: list[tuple[Route, Use]], found: str) -> None:
        if self.refused is not None:
            self.refused.update(route.name for route, _ in uses)
            return
        raise ComponentError(
            f"the layer of {uses[0][0].name} has {found}, which cannot be told apart by row -> freeze it, or use a "
            "mixer that does not look at gradients"
        )


class _Keep(torch.autograd.Function):
    """Saves a tensor as an operation of autograd's saves its own; nothing is ever computed with the result."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(value)
        return anchor.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise AssertionError("nothing goes back through what was kept")


def _kept(value: torch.Tensor) -> Any:
    """Returns what holds a tensor beside the graph: ``kept.grad_fn.saved_tensors[0]`` gives it back, once.

    It hangs on a leaf of its own and not on the layer's output, whose hook holds it: they would hold each other.
    """
    return _Keep.apply(torch.zeros((), requires_grad=True), value)  # type: ignore[no-untyped-call]
