"""How the steps of some rows agree with a target's gradient, and with each other: for methods that pick rows in turn.

The products of a row with all others need the vectors of all of them at once. So this is for lots of rows, such as the
candidates of one optimizer step, and what is kept is stated before: :func:`kept_numbers`.

    whole      each row's vector as it is: products are those of the vectors, up to rounding in float32
    sketched   K numbers of each row: a product <x, y> of two rows is estimated without bias, with a standard deviation
               of about |x| |y| sqrt((1 + c^2) / K), c being their cosine; of a row with itself 1.4 / sqrt(K) of it.
               Products with the target and norms stay exact.

Vectors lie on the CPU of the rank that formed them, unless they take little of the device. Parameter by parameter, and
of a large one part by part, they are brought together over the ranks, multiplied and added up.

Letters: N rows of all lots, n rows of a lot, B rows of a batch, D numbers of a parameter or of a part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.ranks.by_row import gather_by_row
from dataflex.scoring.gradients.influence import require_finite_gradients, step_lengths
from dataflex.scoring.gradients.per_row import PerSampleGradients
from dataflex.scoring.gradients.routes import Route
from dataflex.scoring.gradients.sinks import Direction, Sink
from dataflex.scoring.gradients.sketch import Sketch
from dataflex.scoring.passes.budget import device_memory
from dataflex.scoring.passes.row_pass import RowBatch, RowPass

_PART_NUMBERS = 2**24
"""Numbers of all rows' vectors that are multiplied at a time: 64 MB."""
_DEVICE_SHARE = 8  # the model being trained has the rest of the device's memory


@dataclass(frozen=True)
class RowProducts:
    """What is known of N rows, in lots.

    Attributes:
        target: (N,) inner product of each row's step with the target's gradient; NaN for a row without a label.
        norms: (N,) length of each row's step; NaN for a row without a label.
        overlaps: For each lot, (n, n) inner products of its rows' steps with each other.
    """

    target: NDArray[np.float64]
    norms: NDArray[np.float64]
    overlaps: list[NDArray[np.float64]]


def kept_numbers(sizes: Sequence[int], sketch_dim: int | None) -> int:
    """Returns how many numbers are kept of each row while its lot is looked at.

    Args:
        sizes: Numbers of each parameter's gradient, as they are formed.
        sketch_dim: K; None where vectors are kept whole.
    """
    return sum(sizes) if sketch_dim is None else sketch_dim


def row_products(
    gradients: PerSampleGradients,
    model: torch.nn.Module,
    mean: Sequence[torch.Tensor],
    rows: RowPass,
    lots: Sequence[int],
    direction: Direction | None = None,
    sketch: Sketch | None = None,
) -> RowProducts:
    """Returns how the rows agree with the target and, inside of each lot, with each other. Collective.

    The same on every rank. All lots go through the model in one pass, and the vectors of all of them are kept.

    Args:
        gradients: Forms the gradients.
        model: The model that it belongs to.
        mean: By parameter, (1, D): the target's gradient, as :func:`target_means` returns it of one set.
        rows: The N rows, lot after lot.
        lots: How many rows each lot has; they sum to N.
        direction: The step of a row, from its gradient; None for the gradient itself (SGD).
        sketch: Sketches the vectors that are multiplied with each other; None keeps them whole.

    Raises:
        ComponentError: A gradient is NaN or infinite.
    """
    sizes = [route.size for route in gradients.routes] if sketch is None else [sketch.dim]
    count, device = sum(lots), mean[0].device
    own = _Own(sizes, _store(device, count * sum(sizes)))

    def score(batch: RowBatch) -> tuple[_Kept, torch.Tensor]:
        sink = _Kept(len(batch.labels()), device, direction, mean, sketch, own.store)
        gradients.backward(batch, sink)
        require_finite_gradients(sink)
        return sink, torch.stack([sink.dots_B, step_lengths(sink, batch)], dim=1)

    for batch, (sink, found_B2) in replace(rows, gradients=True).results(model, score):
        if not batch.repeated:
            own.add(batch.rows, sink.parts, found_B2)
    found_N2 = gather_by_row(own.places(), own.joined_found(), count, rows.accelerator).astype(np.float64)
    overlaps = _overlaps(own, lots, rows, device)
    labelled_N = ~np.isnan(found_N2[:, 1])
    return RowProducts(np.where(labelled_N, found_N2[:, 0], np.nan), found_N2[:, 1], overlaps)


class _Kept(Sink):
    """Multiplies with the target's gradient, and keeps the vectors, whole or sketched, where there is room."""

    def __init__(
        self,
        rows: int,
        device: torch.device,
        direction: Direction | None,
        mean: Sequence[torch.Tensor],
        sketch: Sketch | None,
        store: torch.device,
    ) -> None:
        super().__init__(rows, device, direction)
        self._mean, self._sketch, self._store = mean, sketch, store
        self.dots_B = torch.zeros(rows, device=device)
        self.parts: dict[int, torch.Tensor] = {}

    def clear(self) -> None:
        """Forgets everything."""
        super().clear()
        self.dots_B.zero_()
        self.parts.clear()

    def take(self, route: Route, rows: slice, vectors_BD: torch.Tensor) -> None:
        """Adds this parameter's share of the products with the target, and keeps the vectors."""
        self.dots_B[rows] += vectors_BD @ self._mean[route.index][0]
        place = route.index if self._sketch is None else 0
        made_BK = vectors_BD if self._sketch is None else self._sketch.apply(route.index, vectors_BD)
        if place not in self.parts:
            self.parts[place] = torch.zeros(len(self.dots_B), made_BK.shape[1], device=self._store)
        self.parts[place][rows] += made_BK.to(self._store)


@dataclass
class _Own:
    """What this rank has formed."""

    sizes: list[int]
    store: torch.device
    rows: list[NDArray[np.int64]] = field(default_factory=list)
    parts: list[dict[int, torch.Tensor]] = field(default_factory=list)
    found: list[torch.Tensor] = field(default_factory=list)

    def add(self, rows_B: NDArray[np.int64], parts: dict[int, torch.Tensor], found_B2: torch.Tensor) -> None:
        self.rows.append(rows_B)
        self.parts.append(parts)
        self.found.append(found_B2.cpu())

    def places(self) -> NDArray[np.int64]:
        return np.concatenate([np.empty(0, dtype=np.int64), *self.rows])

    def joined_found(self) -> torch.Tensor:
        return torch.cat([torch.empty(0, 2), *self.found])

    def columns(self, place: int, part: slice, size: int) -> torch.Tensor:
        """Returns some numbers of a parameter of each row that is here, 0 where no row of a batch has reached it."""
        found = [
            parts[place][:, part] if place in parts else torch.zeros(len(rows), size, device=self.store)
            for rows, parts in zip(self.rows, self.parts, strict=True)
        ]
        return torch.cat([torch.empty(0, size, device=self.store), *found])


def _overlaps(own: _Own, lots: Sequence[int], rows: RowPass, device: torch.device) -> list[NDArray[np.float64]]:
    """Returns the (n, n) products of each lot, the same on every rank. Collective."""
    count, places = sum(lots), own.places()
    alone = rows.accelerator is None or rows.accelerator.num_processes == 1
    order = torch.from_numpy(np.argsort(places, kind="stable")).to(own.store)
    found = [torch.zeros(lot, lot, device=device) for lot in lots]
    step = max(1, _PART_NUMBERS // max(1, count))
    for place, size in enumerate(own.sizes):
        for first in range(0, size, step):
            part = slice(first, min(first + step, size))
            columns_nD = own.columns(place, part, part.stop - first)
            if alone:  # nothing to bring together: the vectors need not leave the device
                vectors_ND = columns_nD[order].to(device)
            else:
                vectors_ND = torch.from_numpy(gather_by_row(places, columns_nD, count, rows.accelerator)).to(device)
            for products, own_nD in zip(found, torch.split(vectors_ND, list(lots)), strict=True):
                products += own_nD @ own_nD.T
    return [products.double().numpy() for products in (each.cpu() for each in found)]


def _store(device: torch.device, numbers: int) -> torch.device:
    """Returns where vectors are kept until all of them are there."""
    if device.type == "cpu" or 4 * numbers <= device_memory(device) // _DEVICE_SHARE:
        return device
    return torch.device("cpu")
