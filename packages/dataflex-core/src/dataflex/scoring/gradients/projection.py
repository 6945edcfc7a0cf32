"""What is kept of the gradients of rows: all numbers, or a linear sketch of them that keeps inner products.

Two steps, each optional. A matrix of more than F * F numbers is projected to F dimensions from each side before it is
formed (:mod:`dataflex.scoring.gradients.factors`), which costs F (I + O) products for a token in place of I * O. What
that leaves of all parameters is summed into D numbers (:mod:`dataflex.scoring.gradients.sketch`). Both maps are
drawn from the seed and independent, so inner products stay unbiased. The uses of a parameter in two places add up.

Letters: B rows, D numbers of a sketch.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from dataflex.core.component import seeded
from dataflex.interfaces.source_gradients import GradientSketch
from dataflex.scoring.gradients.factors import Factors, factored
from dataflex.scoring.gradients.routes import Route, gradient_routes
from dataflex.scoring.gradients.rules import Checked
from dataflex.scoring.gradients.sketch import Sketch


class Projection:
    """The map from the gradients of some parameters to D numbers. The same on every rank and in every step.

    Args:
        model: The model, with its adapters.
        wanted: Which gradients, and what is kept.
        seed: Of the maps.
        device: Where the gradients are.
        without: Names of parameters that are left out.

    Attributes:
        routes: The parameters of which gradients are kept, and how they are formed.
        dim: D.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        wanted: GradientSketch,
        seed: int,
        device: torch.device,
        without: Collection[str] = (),
    ) -> None:
        self.wanted, self.seed = wanted, seeded(seed, "source gradients")
        found, self.factors = gradient_routes(model), dict[int, Factors]()
        if wanted.factor_dim is not None:
            found, self.factors = factored(found, wanted.factor_dim, self.seed, device)
        self.trainable = sum(route.numel for route in found)
        self.routes = [r for r in found if r.name not in without and (wanted.layers == "all" or _in_linear_layers(r))]
        kept = {route.index: route.size for route in self.routes}
        ends = [sum(kept.get(index, 0) for index in range(end)) for end in range(len(found) + 1)]
        self._places = {index: slice(ends[index], ends[index + 1]) for index in kept}
        self._sketch: Sketch | None = None
        self.dim = ends[-1]
        if wanted.proj_dim is not None and self.dim > wanted.proj_dim:
            self.dim = wanted.proj_dim
            self._sketch = Sketch([kept.get(r.index, 0) for r in found], self.dim, self.seed, device)

    def empty(self, rows: int, device: torch.device) -> torch.Tensor:
        """Returns (B, D) zeros, float32."""
        return torch.zeros(rows, self.dim, device=device)

    def add(self, index: int, rows: slice, grads_BX: torch.Tensor, sums_BD: torch.Tensor) -> None:
        """Adds the gradients of one parameter for some rows, as its rule formed them.

        Args:
            index: The parameter's place; of one that is not kept nothing is added.
            rows: Which rows.
            grads_BX: Their gradients.
            sums_BD: (B, D) what they are added to.
        """
        if index not in self._places:
            return
        if self._sketch is None:
            sums_BD[rows, self._places[index]] += grads_BX
        else:
            sums_BD[rows] += self._sketch.apply(index, grads_BX)

    @property
    def share(self) -> float:
        """The part of the trained numbers whose gradients are kept."""
        return sum(route.numel for route in self.routes) / self.trainable


def _in_linear_layers(route: Route) -> bool:
    """Whether a parameter is the matrix of a linear layer; it may be that of an embedding as well."""
    if any(use.rule is None or isinstance(use.check, Checked) for use in route.uses) or len(route.shape) != 2:
        return False
    return any(not isinstance(use.module, torch.nn.Embedding) for use in route.uses)
