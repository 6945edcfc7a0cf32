"""Gradients of each row's loss, for all rows of a batch in one forward and one backward pass.

The loss of the pass is the sum of the rows' losses, so row ``i`` of the gradient of any layer's output belongs to row
``i``'s loss alone. Hooks keep each trainable layer's input until that gradient arrives, form the gradients of the
layer's parameters row by row, hand them on, and forget them: at no time does more than one parameter's are in memory
(two tied ones count as one). No parameter requires a gradient meanwhile, only outputs do: nothing is added to
``.grad``, nothing is reduced over ranks, and sharded engines gather nothing for it.

Letters: B rows of the batch, T tokens, M label positions, V vocabulary, D numbers of a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.hooks import RemovableHandle

from dataflex.core.errors import ComponentError
from dataflex.scoring.autocast import autocast
from dataflex.scoring.factors import Factors, factored
from dataflex.scoring.gradient_routes import Route, Use, gradient_routes, unsupported
from dataflex.scoring.gradient_rules import Call, is_affine
from dataflex.scoring.gradient_sinks import Sink
from dataflex.scoring.label_logits import label_positions
from dataflex.scoring.label_losses import Outputs, outputs_at_labels
from dataflex.scoring.models import output_embeddings, pretrained_models
from dataflex.scoring.row_map import RowMap
from dataflex.scoring.row_pass import RowBatch
from dataflex.scoring.session import undisturbed

if TYPE_CHECKING:
    from accelerate import Accelerator

MOST_NUMBERS = 2**26
"""Gradients that are formed at a time, 256 MB; of a larger parameter, fewer rows at a time."""


Arrival = Callable[[slice], torch.Tensor]


class PerSampleGradients:
    """Runs batches and hands their gradients to a sink. Made by :func:`per_sample_gradients`.

    Attributes:
        routes: The trainable parameters.
        factors: Those of them that are projected, by their place.
    """

    def __init__(
        self, routes: list[Route], factors: dict[int, Factors], outputs: Outputs, accelerator: Accelerator | None
    ) -> None:
        self.routes, self.factors = routes, factors
        self._outputs, self._accelerator = outputs, accelerator
        self._sink: Sink
        self._map: RowMap
        self._calls: dict[Route, int] = {}
        self._waiting: dict[Route, list[Arrival]] = {}
        self._formed: set[Route] = set()
        self._known_affine: set[tuple[int, str]] = set()

    def backward(self, batch: RowBatch, sink: Sink, *, total: bool = False) -> torch.Tensor:
        """Passes the gradients of each row's loss to ``sink``, one parameter after the other.

        Where no row of the batch reaches a parameter's layer, its gradient is 0.

        Args:
            batch: The rows.
            sink: Takes the gradients.
            total: Whether a row's loss is the sum of its token losses; otherwise it is their mean.

        Returns:
            (B,) label tokens of each row. A row with 0 of them has a gradient of 0.
        """
        labels_BT = batch.labels()
        positions_M, targets_M = label_positions(labels_BT)
        counts_B = torch.bincount(positions_M // labels_BT.shape[1], minlength=len(labels_BT))
        weights_M = torch.ones(len(positions_M))
        if not total:
            weights_M /= counts_B[positions_M // labels_BT.shape[1]]
        self._sink, self._map = sink, RowMap(labels_BT.shape, positions_M)
        self._calls, self._waiting, self._formed = dict.fromkeys(self.routes, 0), {}, set()
        with torch.enable_grad():
            with autocast(self._accelerator):
                found = self._outputs(batch.inputs, positions_M, targets_M, labels_BT.shape)
            if found.values.requires_grad and len(positions_M):
                found.backward(weights_M)
        for route, arrivals in self._waiting.items():
            self._form(route, arrivals)
        self._waiting = {}
        for route in self.routes:
            if route not in self._formed:
                sink.absent(route)
        return counts_B

    def watch(self, use: Use, route: Route, picked: bool) -> RemovableHandle:
        """Puts the hook on one use of a parameter; ``picked`` where the layer sees label positions alone."""

        def after_forward(module: torch.nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor | None:
            if not torch.is_grad_enabled():  # DoRA's norms, the first pass of gradient checkpointing, our own calls
                return None
            rows = self._map
            shared = rows.shared(output) and not picked
            if shared:  # its gradient would be summed over rows
                output = output.expand(rows.rows, -1, -1)
            known = rows.knows(output, picked)
            if known and not use.checked:
                self._require_affine(use, route, args, kwargs, output)
            if not output.requires_grad:
                output.requires_grad_()
            self._calls[route] += known
            call = Call(rows.rows, *(_by_row(values, rows, picked) for values in (args, kwargs)))

            def arrived(grads: torch.Tensor) -> None:
                if not known:
                    raise ComponentError(
                        f"the layer of {route.name} is called with inputs of shape {tuple(args[0].shape)}, which "
                        "cannot be told apart by row -> freeze it, or use a selector that needs no gradients"
                    )
                grads_BSO = rows.by_row(grads.detach())
                self._arrive(route, lambda part: use.rule(module, call.part(part), grads_BSO[part]))

            output.register_hook(arrived)  # type: ignore[no-untyped-call]  # torch has no annotations there
            return output if shared else None

        return use.module.register_forward_hook(after_forward, with_kwargs=True)

    def _arrive(self, route: Route, arrival: Arrival) -> None:
        if self._calls[route] == 1 and len(route.uses) == 1:
            self._form(route, [arrival])
        else:  # a sum over uses: it is complete when the backward pass is
            self._waiting.setdefault(route, []).append(arrival)

    @torch.no_grad()
    def _form(self, route: Route, arrivals: list[Arrival]) -> None:
        self._formed.add(route)
        step = max(1, MOST_NUMBERS // route.size)
        for start in range(0, self._map.rows, step):
            rows = slice(start, min(start + step, self._map.rows))
            grads_BD = arrivals[0](rows)
            for arrival in arrivals[1:]:
                grads_BD += arrival(rows)
            self._sink.add(route, rows, grads_BD)

    def _require_affine(self, use: Use, route: Route, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        place = (id(use.module), use.key)
        if place not in self._known_affine:
            if not is_affine(use.module, use.key, Call(0, args, kwargs), output.detach()):
                raise ComponentError(unsupported({route.name: type(use.module).__name__}))
            self._known_affine.add(place)


@contextmanager
def per_sample_gradients(
    model: torch.nn.Module, accelerator: Accelerator | None = None, factor_dim: int | None = None, seed: int = 0
) -> Iterator[PerSampleGradients]:
    """Yields what forms the gradients of rows under the present weights, in eval mode, nothing of the run disturbed.

    Gradient checkpointing is inactive in eval mode, so a pass holds the activations of its batch.

    Args:
        model: A causal language model without replicas around it (:func:`~dataflex.scoring.without_replicas`).
        accelerator: The run's accelerator, for mixed precision; None for none.
        factor_dim: Project matrices of more than this squared to that many dimensions from each side, for models
            trained as a whole (see :mod:`dataflex.scoring.factors`); None keeps all gradients exact.
        seed: Seed of these projections.

    Raises:
        ComponentError: A trainable parameter has no exact per-sample gradient; the message names it.
    """
    routes = gradient_routes(model)
    factors: dict[int, Factors] = {}
    if factor_dim is not None:
        device = next(model.parameters()).device if accelerator is None else accelerator.device
        routes, factors = factored(routes, factor_dim, seed, device)
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        picked = _picked(model)
        # A trainable output layer needs the gradient of each of its outputs: the logits.
        logits_needed = any(use.module in picked for route in routes for use in route.uses)
        outputs = stack.enter_context(outputs_at_labels(model, chunked=False if logits_needed else None))
        gradients = PerSampleGradients(routes, factors, outputs, accelerator)
        stack.enter_context(_nothing_below(model))
        for route in routes:
            for use in route.uses:
                stack.callback(gradients.watch(use, route, use.module in picked).remove)
        stack.enter_context(_frozen(routes))
        yield gradients


@contextmanager
def _nothing_below(model: torch.nn.Module) -> Iterator[None]:
    """Inside of it, the outputs of frozen input embeddings require no gradient.

    Gradient checkpointing in training makes them require one (``enable_input_require_grads``): the backward pass would
    go through all frozen layers below the lowest trainable one. Called before the parameters are frozen for the pass.
    """
    with ExitStack() as stack:
        for embedding in _input_embeddings(model):
            if not any(parameter.requires_grad for parameter in embedding.parameters()):
                # The last of its hooks, behind the one that makes the output require a gradient.
                stack.callback(embedding.register_forward_hook(lambda module, args, output: output.detach()).remove)
        yield


def _input_embeddings(model: torch.nn.Module) -> set[torch.nn.Module]:
    """Returns what the models inside give as their input embeddings; a part of one, such as a tower, may have none."""
    found: set[torch.nn.Module] = set()
    for base in pretrained_models(model):
        with suppress(NotImplementedError):
            found.add(base.get_input_embeddings())
    return {each for each in found if isinstance(each, torch.nn.Module)}


@contextmanager
def _frozen(routes: list[Route]) -> Iterator[None]:
    for route in routes:
        route.parameter.requires_grad_(False)
    try:
        yield
    finally:
        for route in routes:
            route.parameter.requires_grad_(True)


def _picked(model: torch.nn.Module) -> set[torch.nn.Module]:
    """Returns the modules that see label positions alone: the output layer, and what an adapter put into it."""
    outputs = output_embeddings(pretrained_models(model))
    return set() if outputs is None else set(outputs.modules())


def _by_row(values: Any, rows: RowMap, picked: bool) -> Any:
    """Returns arguments without their graph, tensors by row where the rows are known."""
    if isinstance(values, dict):
        return {name: _by_row(value, rows, picked) for name, value in values.items()}
    if isinstance(values, tuple):
        return tuple(_by_row(value, rows, picked) for value in values)
    if not isinstance(values, torch.Tensor) or isinstance(values, torch.nn.Parameter):
        return values
    values = values.detach()
    if not picked and rows.rows > 1 and tuple(values.shape[:2]) == (1, rows.tokens):
        return values.expand(rows.rows, *values.shape[1:])
    return rows.by_row(values) if rows.knows(values, picked) else values
