"""Gradients of the parameters that have no rule: their modules are called for each row alone, or the whole model is.

Letters: B rows of the batch, T tokens, M label positions, V vocabulary, D numbers of a parameter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from dataflex.model.autocast import allowed_rounding, in_float32
from dataflex.model.label_logits import label_positions
from dataflex.model.label_losses import LabelOutputs, Outputs
from dataflex.scoring.gradients.factors import Factors
from dataflex.scoring.gradients.loss_scale import lowered
from dataflex.scoring.gradients.plan import WHOLE, Replayed
from dataflex.scoring.gradients.replay import Gradients, NotByRowError, Unit, distance
from dataflex.scoring.gradients.routes import Route
from dataflex.scoring.gradients.row_choices import Choices
from dataflex.scoring.gradients.row_map import RowMap
from dataflex.scoring.gradients.sinks import Sink
from dataflex.scoring.gradients.uses import requiring
from dataflex.scoring.passes.row_pass import RowBatch

Context = Callable[[], AbstractContextManager[None]]
Arrival = Callable[[slice], torch.Tensor]
"""``arrival(rows) -> (n, D)``, what one use of a parameter by a rule adds to the gradients of some rows."""


class ReplacedError(Exception):
    """A module cannot be called by row.

    Attributes:
        name: Its name.
        changed: Whether that is because copies of its inputs must be kept.
    """

    def __init__(self, name: str, changed: bool, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.changed = name, changed


class BatchLosses:
    """The losses of a batch's rows: where labels are, and the way back from the sum of the losses.

    Args:
        batch: The rows.
        outputs: Runs the model up to its token losses or its logits.
        total: Whether a row's loss is the sum of its token losses; otherwise it is their mean.

    Attributes:
        counts_B: (B,) label tokens of each row.
        rows: Which row each activation belongs to.
        scales_B: (B,) what each row's loss is multiplied with on the way back; None for nothing.
    """

    def __init__(self, batch: RowBatch, outputs: Outputs, total: bool) -> None:
        labels_BT = batch.labels()
        self._batch, self._outputs, self._total, self._labels_BT = batch, outputs, total, labels_BT
        self.positions_M, self._targets_M = label_positions(labels_BT)
        self.row_M = self.positions_M // labels_BT.shape[1]
        self.counts_B = torch.bincount(self.row_M, minlength=len(labels_BT))
        self.rows = RowMap(labels_BT.shape, self.positions_M)
        self.scales_B: torch.Tensor | None = None
        self._choices: Choices | None = None
        self._chosen: Context = nullcontext

    def note_choices(self, allowed: float) -> None:
        """From now on, rows alone choose what they do in the batch, up to rounding.

        Args:
            allowed: How far numbers may be apart for rounding alone, as a share.
        """
        self._choices = Choices(self.rows, False, allowed)
        with self._choices.noted():
            self.outputs()

    def outputs(self) -> LabelOutputs:
        """Runs the model up to its outputs at label positions."""
        with self._chosen():
            return self._outputs(self._batch.inputs, self.positions_M, self._targets_M, self._labels_BT.shape)

    def backward(self, found: LabelOutputs) -> None:
        """Runs the backward pass of the sum of the scaled losses."""
        if found.values.requires_grad and len(self.positions_M):
            torch.autograd.backward(found.values, found.slopes(self._weights()))

    def _weights(self) -> torch.Tensor:
        weights_M = torch.ones(len(self.positions_M))
        if not self._total:
            weights_M = weights_M / self.counts_B[self.row_M]
        return weights_M if self.scales_B is None else weights_M * self.scales_B[self.row_M]

    def alone(self, row: int) -> BatchLosses:
        """Returns the losses of one row, with the padding that it has in the batch; of a row with images, its own."""

        def cut(value: Any) -> Any:
            tensor = isinstance(value, torch.Tensor)
            return self.rows.of_row(value, self.rows.layout(value, False), row) if tensor else value

        if self._batch.alone is not None:
            one = self._batch.alone(row)
        else:
            inputs = {name: cut(value) for name, value in self._batch.inputs.items()}
            one = RowBatch(inputs, self._labels_BT[row : row + 1])
        found = BatchLosses(one, self._outputs, self._total)
        found.scales_B = None if self.scales_B is None else self.scales_B[row : row + 1]
        if self._choices is not None:
            found._chosen = partial(self._choices.again, row)
        return found

    def gradients(self, parameters: list[nn.Parameter]) -> tuple[torch.Tensor, Gradients]:
        """Returns the outputs, and autograd's gradients of the sum of the scaled losses: of one row, its own."""
        with torch.enable_grad(), requiring(parameters):
            outputs = self.outputs()
            found: Gradients = [None] * len(parameters)
            if outputs.values.requires_grad and len(self.positions_M):
                slopes = outputs.slopes(self._weights())
                found = list(torch.autograd.grad(outputs.values, parameters, slopes, allow_unused=True))
        torch.clear_autocast_cache()  # it has weights that require a gradient
        return outputs.values.detach(), found

    def norms(self, routes: Sequence[Route], factors: Mapping[int, Factors]) -> dict[Route, float]:
        """Returns the norms of the gradients of one row's loss, projected where there are factors."""
        while True:
            _, gradients = self.gradients([route.parameter for route in routes])
            norms = torch.zeros(len(routes))
            for place, (route, gradient) in enumerate(zip(routes, gradients, strict=True)):
                if gradient is not None:
                    norms[place] = _vector(route, gradient, factors).norm()
            scales = lowered(self.scales_B, norms.sum().unsqueeze(0))
            if scales is None:
                break
            self.scales_B = scales
        if self.scales_B is not None:
            norms /= self.scales_B
        return dict(zip(routes, norms.tolist(), strict=True))


def _vector(route: Route, gradient: torch.Tensor, factors: Mapping[int, Factors]) -> torch.Tensor:
    """Returns a gradient in float32, (D,), projected where it has factors."""
    with in_float32(gradient):
        if route.index in factors:
            return factors[route.index].project(gradient.detach())
        return gradient.detach().float().flatten()


class RowsAlone:
    """All modules that are called by row.

    Args:
        model: The model.
        replayed: Names of the modules, and the parameters of each.
        copied: Those of which copies of the inputs must be kept.
        picked: The modules that see label positions alone.
        factors: Projections of parameters, by their place.
        autocast: Mixed precision.

    Attributes:
        routes: The parameters.
        whole_only: Whether nothing but the whole model is called by row.
        running: Whether modules are being called by row at the moment.
    """

    def __init__(
        self,
        model: nn.Module,
        replayed: Replayed,
        copied: set[str],
        picked: set[nn.Module],
        factors: Mapping[int, Factors],
        autocast: Context,
    ) -> None:
        self._model, self._factors, self._autocast = model, factors, autocast
        self._whole = replayed.get(WHOLE, [])
        named = {name: model.get_submodule(name) for name in replayed if name != WHOLE}
        self._units = [Unit(n, m, replayed[n], m in picked, n in copied) for n, m in named.items()]
        self.routes = {route for routes in replayed.values() for route in routes}
        self.whole_only = not self._units
        self.running = False

    def watch(self) -> list[RemovableHandle]:
        """Puts the hooks on the modules."""
        return [handle for unit in self._units for handle in unit.watch(lambda: not self.running)]

    def begin(self, rows: RowMap) -> None:
        """Forgets the last batch."""
        for unit in self._units:
            unit.begin(rows)

    def form(
        self, losses: BatchLosses, expected: torch.Tensor | None, sink: Sink, arrivals: Mapping[Route, list[Arrival]]
    ) -> set[Route]:
        """Hands the gradients on, row by row, and returns the parameters that any row reached.

        Args:
            losses: The batch.
            expected: Outputs of the batch at its label positions, to be compared with those of rows alone; None for no
                comparison.
            sink: Takes the gradients.
            arrivals: What uses by a rule add.

        Raises:
            ReplacedError: A module cannot be called by row.
        """
        self.running = True
        try:
            return self._form(losses, expected, sink, arrivals)
        finally:
            self.running = False

    def _form(
        self, losses: BatchLosses, expected: torch.Tensor | None, sink: Sink, arrivals: Mapping[Route, list[Arrival]]
    ) -> set[Route]:
        reached = [unit for unit in self._units if unit.reached()]
        sources = Counter(route for unit in reached for route in unit.routes)
        sources.update(self._whole)
        apart = [torch.zeros((), device=sink.squares_B.device)]
        with self._autocast():
            allowed = allowed_rounding(self._model)
            if self._whole and expected is not None:
                losses.note_choices(allowed)
        for row, count in enumerate(losses.counts_B.tolist()):
            sums: dict[Route, torch.Tensor | None] = {}
            left = Counter(sources)
            for routes, gradients in self._of_row(row, losses, expected, reached, count, apart, allowed):
                for route, gradient in zip(routes, gradients, strict=True):
                    if gradient is not None:
                        before = sums.get(route)
                        sums[route] = gradient if before is None else before + gradient
                    left[route] -= 1
                    if not left[route]:
                        self._hand_on(route, row, sums.pop(route, None), sink, arrivals.get(route, []))
        self._require_same(reached, apart, allowed)
        return set(sources)

    def _of_row(
        self,
        row: int,
        losses: BatchLosses,
        expected: torch.Tensor | None,
        reached: list[Unit],
        count: int,
        apart: list[torch.Tensor],
        allowed: float,
    ) -> Any:
        for unit in reached:
            none: Gradients = [None] * len(unit.routes)
            try:
                yield unit.routes, unit.gradients(row, self._autocast, allowed) if count else none
            except NotByRowError as error:
                raise ReplacedError(unit.name, unit.changed, str(error)) from error
        if self._whole:
            gradients: Gradients = [None] * len(self._whole)
            if count:
                with self._autocast():
                    found, gradients = losses.alone(row).gradients([route.parameter for route in self._whole])
                if expected is not None:
                    apart.append(distance(found, expected[(losses.row_M == row).to(expected.device)]))
            yield self._whole, gradients

    def _hand_on(
        self, route: Route, row: int, gradient: torch.Tensor | None, sink: Sink, arrivals: list[Arrival]
    ) -> None:
        rows = slice(row, row + 1)
        with in_float32(sink.squares_B):
            if gradient is None:
                found_D = sink.squares_B.new_zeros(route.size)
            else:
                found_D = _vector(route, gradient, self._factors)
            found_1D = found_D.unsqueeze(0)
            for arrival in arrivals:
                found_1D = found_1D + arrival(rows)
            sink.add(route, rows, found_1D)

    def _require_same(self, reached: list[Unit], apart: list[torch.Tensor], allowed: float) -> None:
        names, found = [WHOLE], [torch.stack([value.to(apart[0].device) for value in apart]).max()]
        for unit in reached:
            value = unit.apart()
            if value is not None:
                names.append(unit.name)
                found.append(value.to(apart[0].device))
        for name, value in zip(names, torch.stack(found).tolist(), strict=True):
            if not value <= allowed:
                raise ReplacedError(name, False, "a row alone gives something else than in the batch")
