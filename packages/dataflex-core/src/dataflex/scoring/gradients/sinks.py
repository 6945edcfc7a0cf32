"""What becomes of the gradients of a batch: kept, sketched, or multiplied with target vectors and forgotten.

Letters: B rows of the batch, D numbers of a parameter, K dimensions of a sketch, J target sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from dataflex.scoring.gradients.routes import Route
from dataflex.scoring.gradients.sketch import Sketch

Direction = Callable[[Route, torch.Tensor], torch.Tensor]
"""``direction(route, grads_BD) -> (B, D)``, such as Adam's; the gradient itself where it is None."""


class Sink:
    """Applies the direction and adds up each row's squared norm.

    Args:
        rows: B.
        device: Where the gradients are.
        direction: What is done to the gradients first; None for nothing.

    Attributes:
        squares_B: Squared norm of each row's whole vector so far.
        scales_B: What each row's loss was multiplied with; None for nothing.
    """

    def __init__(self, rows: int, device: torch.device, direction: Direction | None = None) -> None:
        self._direction = direction
        self.squares_B = torch.zeros(rows, device=device)
        self.scales_B: torch.Tensor | None = None

    def clear(self) -> None:
        """Forgets what was taken: the batch begins anew."""
        self.squares_B.zero_()

    def add(self, route: Route, rows: slice, grads_BD: torch.Tensor) -> None:
        """Takes the gradients of one parameter for some rows, of their losses as they were multiplied."""
        if self.scales_B is not None:
            grads_BD = grads_BD / self.scales_B[rows].unsqueeze(1)
        if self._direction is not None:
            grads_BD = self._direction(route, grads_BD)
        self.squares_B[rows] += torch.linalg.vecdot(grads_BD, grads_BD)
        self.take(route, rows, grads_BD)

    def absent(self, route: Route) -> None:
        """Takes a gradient of 0 of one parameter for every row: nothing in the batch has reached its layer.

        The direction of 0 is not 0 where Adam has moments of former steps, and it is the same for all rows.
        """
        if self._direction is None:
            return
        rows = len(self.squares_B)
        step_1D = self._direction(route, self.squares_B.new_zeros(1, route.size))
        square = torch.linalg.vecdot(step_1D, step_1D)
        if square > 0:
            self.squares_B += square
            self.take(route, slice(0, rows), step_1D.expand(rows, -1))

    def take(self, route: Route, rows: slice, vectors_BD: torch.Tensor) -> None:
        """Takes what the direction made of the gradients."""
        raise NotImplementedError


class Whole(Sink):
    """Keeps everything: parameter -> (B, D); a parameter that no row of the batch reached is not there."""

    def __init__(self, rows: int, device: torch.device, direction: Direction | None = None) -> None:
        super().__init__(rows, device, direction)
        self.vectors: dict[int, torch.Tensor] = {}

    def clear(self) -> None:
        """Forgets everything."""
        super().clear()
        self.vectors.clear()

    def take(self, route: Route, rows: slice, vectors_BD: torch.Tensor) -> None:
        """Keeps the vectors."""
        if route.index not in self.vectors:
            self.vectors[route.index] = vectors_BD.new_empty(len(self.squares_B), route.size)
        self.vectors[route.index][rows] = vectors_BD


class Norms(Sink):
    """Keeps the norm of each parameter's gradients alone, to compare them with others."""

    def __init__(self, rows: int, device: torch.device) -> None:
        super().__init__(rows, device)
        self._norms: dict[Route, torch.Tensor] = {}

    def clear(self) -> None:
        """Forgets the norms."""
        super().clear()
        self._norms.clear()

    def take(self, route: Route, rows: slice, vectors_BD: torch.Tensor) -> None:
        """Keeps the norms."""
        self._norms.setdefault(route, torch.zeros_like(self.squares_B))[rows] = torch.linalg.vector_norm(
            vectors_BD, dim=1
        )

    def apart(self, row: int, expected: Mapping[Route, float], allowed: float) -> list[Route]:
        """Returns the parameters whose norm is another than expected, of one row.

        Args:
            row: Its place in the batch.
            expected: The norms.
            allowed: The share of itself by which a number may be off for rounding alone. Gradients have come a long
                way, and what is small beside the whole is nothing but rounding.
        """
        whole = sum(norm**2 for norm in expected.values()) ** 0.5
        wrong = []
        for route, norm in expected.items():
            found = float(self._norms[route][row]) if route in self._norms else 0.0
            if not abs(found - norm) <= max(10 * allowed * max(norm, found), allowed * whole):
                wrong.append(route)
        return wrong


class Dots(Sink):
    """Multiplies with target vectors: never more than one parameter's gradients in memory.

    Args:
        targets: By parameter, the target sets' (J, D) vectors.
    """

    def __init__(
        self, rows: int, device: torch.device, direction: Direction | None, targets: list[torch.Tensor]
    ) -> None:
        super().__init__(rows, device, direction)
        self._targets = targets
        self.dots_BJ = torch.zeros(rows, len(targets[0]), device=device)

    def clear(self) -> None:
        """Forgets the products."""
        super().clear()
        self.dots_BJ.zero_()

    def take(self, route: Route, rows: slice, vectors_BD: torch.Tensor) -> None:
        """Adds this parameter's share of the inner products."""
        self.dots_BJ[rows] += vectors_BD @ self._targets[route.index].T


class Sketched(Sink):
    """Sketches: (B, K), whatever the number of parameters."""

    def __init__(self, rows: int, device: torch.device, direction: Direction | None, sketch: Sketch) -> None:
        super().__init__(rows, device, direction)
        self._sketch = sketch
        self.features_BK = torch.zeros(rows, sketch.dim, device=device)

    def clear(self) -> None:
        """Forgets the sketches."""
        super().clear()
        self.features_BK.zero_()

    def take(self, route: Route, rows: slice, vectors_BD: torch.Tensor) -> None:
        """Adds this parameter's share of the sketches."""
        self.features_BK[rows] += self._sketch.apply(route.index, vectors_BD)
