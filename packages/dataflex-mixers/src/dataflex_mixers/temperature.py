"""``temperature``: shares between the sizes of the sources and equal ones, the same at every update.

    alpha_d = N_d^(1/T) / sum_k N_k^(1/T)

N_d is the size of source d in rows, or in tokens with ``mixture_unit: tokens``. T = 1 gives the sizes, a large T comes
close to equal shares; between them, small sources are repeated more often than large ones. Multilingual models are
trained so: Arivazhagan et al., "Massively Multilingual Neural Machine Translation in the Wild", arXiv 1907.05019,
with T = 5. Cost: none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from dataflex.core.cost import Ahead, Cost
from dataflex.core.parameter_checks import positive, require
from dataflex.core.registry import register_mixer
from dataflex.train.mixer.base_mixer import Mixer

from dataflex_mixers.parts.simplex import Shares, softmax

if TYPE_CHECKING:
    import torch
    from dataflex.planning.mixture import MixtureManager


def tempered(amounts_K: Shares, temperature: float) -> Shares:
    """Returns the shares of sources of these sizes: (K,), sum 1.

    Args:
        amounts_K: (K,) sizes, above 0.
        temperature: T > 0; below 1 it favours the large sources.
    """
    return softmax(np.log(amounts_K), temperature)  # N_d^(1/T) / sum


@register_mixer("temperature")
class TemperatureMixer(Mixer):
    """Shares between the sizes of the sources and equal ones: size to the power of 1 / temperature.

    Args:
        mixture_manager: The sources.
        temperature: T > 0. 1: the sizes; larger: closer to equal shares; below 1: the large sources get still more.

    Raises:
        ConfigError: ``temperature`` is no such number.
    """

    needs_sizes: ClassVar[bool] = True

    draws = False

    def __init__(self, mixture_manager: MixtureManager, temperature: float = 5.0) -> None:
        super().__init__(mixture_manager)
        require("temperature mixer", positive("temperature", temperature))
        self.temperature = float(temperature)

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Nothing is computed. See the base class."""
        return Cost()

    def mix(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> Shares:
        """Returns (K,) shares; the same on every rank and at every update."""
        return tempered(self.mixture_manager.amounts, self.temperature)
