"""Gradients of each row's loss, for all rows of a batch in one forward and one backward pass.

The loss of the pass is the sum of the rows' losses, so row ``i`` of the gradient of any layer's output belongs to row
``i``'s loss alone. Hooks keep each trainable layer's input until that gradient arrives, form the gradients of the
layer's parameters row by row, hand them on, and forget them: at no time does more than one parameter's are in memory
(two tied ones count as one). No parameter requires a gradient meanwhile, only outputs do: nothing is added to
``.grad``, nothing is reduced over ranks, and sharded engines gather nothing for it.

That needs a rule for the layer. Parameters without one come after the backward pass, by calling their modules for one
row at a time (:mod:`dataflex.scoring.gradients.alone`); :mod:`dataflex.scoring.gradients.plan` knows which is which.

Letters: B rows of the batch, T tokens, M label positions, V vocabulary, D numbers of a parameter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.hooks import RemovableHandle

from dataflex.core.errors import ComponentError
from dataflex.model.autocast import allowed_rounding, autocast, in_float32
from dataflex.model.label_losses import Outputs, outputs_at_labels
from dataflex.model.undisturbed import undisturbed
from dataflex.model.unwrapped import pretrained_models
from dataflex.scoring.gradients.alone import Arrival, BatchLosses, ReplacedError, RowsAlone
from dataflex.scoring.gradients.factors import Factors, factored
from dataflex.scoring.gradients.layer_inputs import by_row, holds_output, picked_layers
from dataflex.scoring.gradients.loss_scale import lowered, row_scales
from dataflex.scoring.gradients.plan import WHOLE, plan_of
from dataflex.scoring.gradients.routes import Route, Use, gradient_routes
from dataflex.scoring.gradients.row_map import RowMap
from dataflex.scoring.gradients.row_mixing import mixing_layer
from dataflex.scoring.gradients.rules import Call
from dataflex.scoring.gradients.sinks import Norms, Sink
from dataflex.scoring.gradients.uses import find_uses
from dataflex.scoring.passes.row_pass import RowBatch

if TYPE_CHECKING:
    from accelerate import Accelerator

MOST_NUMBERS = 2**26
"""Gradients that are formed at a time, 256 MB; of a larger parameter, fewer rows at a time."""


class PerSampleGradients:
    """Runs batches and hands their gradients to a sink. Made by :func:`per_sample_gradients`.

    Args:
        model: The model.
        routes: The trainable parameters.
        factors: Those of them that are projected, by their place.
        outputs: Runs the model up to its logits.
        accelerator: The run's accelerator, for mixed precision; None for none.

    Attributes:
        routes: The trainable parameters.
        factors: Those of them that are projected, by their place.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        routes: list[Route],
        factors: dict[int, Factors],
        outputs: Outputs,
        accelerator: Accelerator | None,
    ) -> None:
        self.routes, self.factors = routes, factors
        self._model, self._outputs, self._accelerator = model, outputs, accelerator
        self._names = {id(module): name for name, module in model.named_modules()}
        self._plan = plan_of(model, routes)
        self._hooks, self._planned = ExitStack(), False
        self._alone: RowsAlone
        self._ruled: dict[Route, int] = {}
        self._sink: Sink
        self._map: RowMap
        self._calls: dict[Route, int] = {}
        self._waiting: dict[Route, list[Arrival]] = {}
        self._formed: set[Route] = set()
        self._checked: set[tuple[int, str]] = set()
        self._misfits: dict[str, bool] = {}

    def backward(self, batch: RowBatch, sink: Sink, *, total: bool = False) -> torch.Tensor:
        """Passes the gradients of each row's loss to ``sink``, one parameter after the other.

        Where no row of the batch reaches a parameter's layer, its gradient is 0.

        Args:
            batch: The rows.
            sink: Takes the gradients.
            total: Whether a row's loss is the sum of its token losses; otherwise it is their mean.

        Returns:
            (B,) label tokens of each row. A row with 0 of them has a gradient of 0.

        Raises:
            ComponentError: Rows of the batch change each other, or a layer cannot be called.
        """
        losses = BatchLosses(batch, self._outputs, total)
        if not (self._plan.known or self._plan.rules_only):

            def run() -> torch.Tensor:
                with self.autocast():
                    return losses.outputs().values

            parameters = {id(route.parameter): route.parameter for route in self.routes}
            self._hooks.close()
            self._plan.learn(find_uses(self._model, parameters, run), self._model, self.routes)
            self._planned = False
        if batch.has_media and not self._plan.has_media:
            self._hooks.close()
            self._plan.see_media(self._model, self.routes)
            self._planned = False
        with self.autocast():
            again = not self._plan.rules_only  # the ranks of a sharded engine go back together
            scales_B = row_scales(self._model, losses.counts_B, total, again=again)
        while True:
            losses.scales_B = scales_B
            sink.scales_B = None if scales_B is None else scales_B.to(sink.squares_B.device)
            while not self._all_formed(losses, sink):
                sink.clear()
                self._planned = False
            scales_B = lowered(scales_B, sink.squares_B) if again else None
            if scales_B is None:
                return losses.counts_B
            sink.clear()

    def autocast(self) -> AbstractContextManager[None]:
        """Returns the context of the run's mixed precision."""
        return autocast(self._accelerator)

    def close(self) -> None:
        """Takes the hooks off the model."""
        self._hooks.close()

    def _all_formed(self, losses: BatchLosses, sink: Sink) -> bool:
        """Runs a batch; returns False where the plan has changed, so that it must run again."""
        if not self._planned:
            self._install()
        self._sink, self._map = sink, losses.rows
        self._calls, self._waiting, self._formed = dict.fromkeys(self.routes, 0), {}, set()
        self._misfits = {}
        self._alone.begin(losses.rows)
        found = None
        if not (self._plan.verified and self._alone.whole_only and not self._ruled):
            with torch.enable_grad():
                with self.autocast():
                    found = losses.outputs()
                if not self._misfits:
                    losses.backward(found)
        if not self._misfits:
            try:
                expected = None if found is None or self._plan.verified else found.values.detach()
                self._formed |= self._alone.form(losses, expected, sink, self._waiting)
            except ReplacedError as error:
                self._replace(error, losses)
                return False
            self._plan.verified |= losses.rows.rows > 1
        return self._rest_formed()

    def _replace(self, found: ReplacedError, losses: BatchLosses) -> None:
        if found.changed:
            self._plan.copied.add(found.name)
        elif found.name != WHOLE:
            self._plan.climb(self._model, found.name)
        else:
            self._alone.running = True
            try:
                with self.autocast():
                    name = mixing_layer(self._model, losses)
            finally:
                self._alone.running = False
            module = self._model.get_submodule(name) if name else self._model
            raise ComponentError(
                f"rows of a batch change each other in {name or 'the model'} ({type(module).__name__}): it gives a row "
                "alone something else than among others, so that no row has a gradient of its own -> use a strategy "
                "that needs no gradients, or a model that treats rows alone"
            )

    def wrong(self, batch: RowBatch, sink: Norms) -> list[str]:
        """Returns the parameters whose gradients are not those of each row alone, and takes the whole model for them.

        Costs a pass of each row with the gradients of all parameters, as training has them.

        Args:
            batch: Rows that :meth:`backward` has just seen.
            sink: What it made of them.
        """
        if self._plan.rules_only:
            return []
        losses = BatchLosses(batch, self._outputs, False)
        losses.scales_B = None if sink.scales_B is None else sink.scales_B.cpu()
        found: dict[Route, None] = {}
        self._alone.running = True
        try:
            with self.autocast():
                allowed = allowed_rounding(self._model)
                losses.note_choices(allowed)
            for row in losses.counts_B.nonzero().flatten().tolist():
                with self.autocast():
                    expected = losses.alone(row).norms(self.routes, self.factors)
                for route in sink.apart(row, expected, allowed):
                    found[route] = None
        finally:
            self._alone.running = False
        if found:
            self._plan.distrust(route.parameter for route in found)
            self._planned = False
        return [route.name for route in found]

    def _rest_formed(self) -> bool:
        for name, climbs in self._misfits.items():
            if climbs:
                self._plan.climb(self._model, name)
            else:
                self._plan.open(name)
        if self._misfits:
            return False
        for route, arrivals in self._waiting.items():
            if route not in self._formed:
                self._form(route, arrivals)
        self._waiting = {}
        for route in self.routes:
            if route not in self._formed:
                self._sink.absent(route)
        return True

    def _install(self) -> None:
        """Puts the hooks of the plan on the model, in place of those that are there."""
        self._hooks.close()
        closed, replayed = self._plan.assign(self._model, self.routes)
        picked = picked_layers(self._model)
        if any(name != WHOLE and holds_output(self._model, name, picked) for name in replayed):
            replayed = {WHOLE: list(dict.fromkeys(route for routes in replayed.values() for route in routes))}
            closed = [(use, route) for use, route in closed if route not in replayed[WHOLE]]
        self._alone = RowsAlone(self._model, replayed, self._plan.copied, picked, self.factors, self.autocast)
        self._ruled = Counter(route for _, route in closed)
        for use, route in closed:
            self._hooks.callback(self.watch(use, route, use.module in picked).remove)
        for handle in self._alone.watch():
            self._hooks.callback(handle.remove)
        self._plan.tell(self._model, replayed)
        self._planned = True

    def watch(self, use: Use, route: Route, picked: bool) -> RemovableHandle:
        """Puts the hook on one use of a parameter; ``picked`` where the layer sees label positions alone."""
        rule, name = use.rule, self._names[id(use.module)]
        assert rule is not None

        def after_forward(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> torch.Tensor | None:
            if not torch.is_grad_enabled() or self._alone.running:  # DoRA's norms, checkpointing, our own calls
                return None
            rows = self._map
            given = args[0] if args else None
            if not isinstance(output, torch.Tensor) or not isinstance(given, torch.Tensor):
                self._misfit(route, name, args, climbs=False)
                return None
            shared = rows.shared(output) and not picked
            if shared:  # its gradient would be summed over rows
                output = output.expand(rows.rows, -1, -1)
            known = rows.knows(output, picked)
            call = Call(rows.rows, *(by_row(values, rows, picked) for values in (args, kwargs)))
            if known and not self._holds(use, Call(0, args, kwargs), output):
                self._misfit(route, name, args, climbs=False)
                return None
            leaf, copied = not output.requires_grad, name in self._plan.copied
            if leaf:
                output = output.detach().requires_grad_().clone()  # a model may change it in place
            elif copied:
                output = output.clone()
            if copied:
                call = Call(rows.rows, (call.inputs.clone(), *call.args[1:]), call.kwargs)
            version = call.inputs._version
            self._calls[route] += known

            def arrived(grads: torch.Tensor) -> None:
                if not known:
                    self._misfit(route, name, args, climbs=grads.ndim < 3)
                elif call.inputs._version != version:
                    self._plan.copied.add(name)
                    self._misfits.setdefault(name, False)
                else:
                    grads_BSO = rows.by_row(grads.detach())
                    self._arrive(route, lambda part: rule(module, call.part(part), grads_BSO[part]))

            output.register_hook(arrived)
            return output if shared or leaf or copied else None

        return use.module.register_forward_hook(after_forward, with_kwargs=True)

    def _misfit(self, route: Route, name: str, args: Any, *, climbs: bool) -> None:
        """Notes a module whose rule does not hold, or that is given inputs whose rows are unknown."""
        if self._plan.rules_only:
            raise ComponentError(
                f"the layer of {route.name} is called with inputs of shape {tuple(args[0].shape)}, which "
                "cannot be told apart by row -> freeze it, or use a selector that needs no gradients"
            )
        self._misfits[name] = self._misfits.get(name, False) or climbs

    def _holds(self, use: Use, call: Call, output: torch.Tensor) -> bool:
        place = (id(use.module), use.key)
        if use.check is not None and place not in self._checked:
            if not use.check.holds(use.module, call, output.detach()):
                return False
            self._checked.add(place)
        return True

    def _arrive(self, route: Route, arrival: Arrival) -> None:
        if self._calls[route] == 1 and self._ruled[route] == 1 and route not in self._alone.routes:
            self._form(route, [arrival])
        else:  # a sum over uses: it is complete when the backward pass is
            self._waiting.setdefault(route, []).append(arrival)

    @torch.no_grad()
    def _form(self, route: Route, arrivals: list[Arrival]) -> None:
        self._formed.add(route)
        step = max(1, MOST_NUMBERS // route.size)
        for start in range(0, self._map.rows, step):
            rows = slice(start, min(start + step, self._map.rows))
            with in_float32(self._sink.squares_B):
                grads_BD = arrivals[0](rows)
                for arrival in arrivals[1:]:
                    grads_BD += arrival(rows)
                self._sink.add(route, rows, grads_BD)


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
            trained as a whole (see :mod:`dataflex.scoring.gradients.factors`); None keeps all gradients exact.
        seed: Seed of these projections.

    Raises:
        ComponentError: Nothing is trainable.
    """
    routes = gradient_routes(model)
    factors: dict[int, Factors] = {}
    if factor_dim is not None:
        device = next(model.parameters()).device if accelerator is None else accelerator.device
        routes, factors = factored(routes, factor_dim, seed, device)
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        # A trainable output layer needs the gradient of each of its outputs: the logits.
        logits_needed = any(p.requires_grad for module in picked_layers(model) for p in module.parameters())
        outputs = stack.enter_context(outputs_at_labels(model, chunked=False if logits_needed else None))
        gradients = PerSampleGradients(model, routes, factors, outputs, accelerator)
        stack.callback(gradients.close)
        stack.enter_context(_nothing_below(model))
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
