"""The interface of a mixer: in which proportions does the next stretch of training draw from the source datasets?

    @register_mixer("mostly_first")
    class MostlyFirst(Mixer):
        def mix(self, model, step_id, **kwargs):
            shares = np.full(len(self.mixture_manager.names), 0.1)
            shares[0] = 1.0
            return shares / shares.sum()

It runs with ``train_type: dynamic_mix``, ``component_name: mostly_first``. Every rank calls ``mix`` with the same
arguments and must return the same numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from dataflex.core.component import Component
from dataflex.utils.logging import logger

if TYPE_CHECKING:
    import numpy as np
    import torch

    from dataflex.data.mixture import MixtureManager

__all__ = ["Mixer", "logger"]


class Mixer(Component, ABC):
    """Sets the proportions of the source datasets.

    Args:
        mixture_manager: The sources: their ``names``, ``sizes`` (rows) and current ``proportions``.
    """

    contract: ClassVar[str] = "it needs mix(model, step_id, **kwargs) -> one share per source"

    def __init__(self, mixture_manager: MixtureManager) -> None:
        self.mixture_manager = mixture_manager

    @classmethod
    def accepts(cls, component: type) -> bool:
        """Returns whether ``component`` is a mixer."""
        return issubclass(component, Mixer)

    @abstractmethod
    def mix(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> np.ndarray:
        """Returns the proportions of the next stretch.

        Called on every rank with the model in eval mode, between two optimizer steps.

        Args:
            model: The model being trained.
            step_id: Global optimizer steps done.
            **kwargs: ``context``, an :class:`~dataflex.core.context.UpdateContext`; more may come in later versions.

        Returns:
            (K,) non-negative shares of rows that sum to 1, in the order of ``mixture_manager.names``.
        """
