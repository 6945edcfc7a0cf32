"""``random``: new proportions at each update, drawn evenly from the simplex. The baseline that a mixer should beat.

    alpha ~ Dirichlet(c, ..., c)

With ``concentration`` c = 1 every mixture is equally likely; c > 1 draws near equal shares, c < 1 near a single source.
The draw depends on the run's seed and on the number of the update alone: runs repeat and resume exactly, and the global
random generators are not used. Cost: next to none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.cost import Ahead, Cost
from dataflex.core.parameter_checks import between, require
from dataflex.core.registry import register_mixer
from dataflex.train.mixer.base_mixer import Mixer
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from dataflex.core.context import UpdateContext
    from dataflex.planning.mixture import MixtureManager


def random_proportions(generator: np.random.Generator, sources: int, concentration: float) -> NDArray[np.float64]:
    """Returns one draw of a symmetric Dirichlet distribution: (K,) float64 shares that sum to 1.

    Args:
        generator: Where the randomness comes from.
        sources: K >= 1.
        concentration: The parameter that all K sources share, > 0.
    """
    return generator.dirichlet(np.full(sources, concentration))


@register_mixer("random")
class RandomMixer(Mixer):
    """New random proportions at each update (symmetric Dirichlet), reproducible from the seed.

    Args:
        mixture_manager: The sources.
        concentration: Of the Dirichlet distribution, between 1e-3 and 1e6. 1: every mixture is equally likely; larger:
            close to equal shares; smaller: close to one source.

    Raises:
        ConfigError: ``concentration`` is not such a number.
    """

    def __init__(self, mixture_manager: MixtureManager, concentration: float = 1.0) -> None:
        super().__init__(mixture_manager)
        require("random mixer", between("concentration", concentration, 1e-3, 1e6))
        self.concentration = float(concentration)

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Nothing is computed. See the base class."""
        return Cost()

    def mix(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float64]:
        """Returns (K,) shares of rows; the same on every rank, because the generator is."""
        context: UpdateContext = kwargs["context"]
        generator = self.generator(context.update)
        return random_proportions(generator, len(self.mixture_manager.names), self.concentration)
