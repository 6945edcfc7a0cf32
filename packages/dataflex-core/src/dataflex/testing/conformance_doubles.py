"""A component of each kind that decides something simple, to stand beside a component under test."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER, Kind
from dataflex.interfaces.mixer import Mixer
from dataflex.interfaces.order import Order
from dataflex.interfaces.selector import Selection, Selector
from dataflex.interfaces.weighter import Weighter


class DoubleSelector(Selector):
    """The rows from where the last update ended, round and round, each with its number as its score."""

    draws = False

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """See the base class."""
        rows = (step_id * 3 + np.arange(num_samples)) % len(self.dataset)
        return Selection(rows, rows.astype(np.float64))


class DoubleMixer(Mixer):
    """More of one source after the other."""

    draws = False

    def mix(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float64]:
        """See the base class."""
        shares_K = np.ones(len(self.mixture_manager.names))
        shares_K[kwargs["context"].update % len(shares_K)] = 1.5
        shares: NDArray[np.float64] = shares_K / shares_K.sum()
        return shares


class DoubleOrder(Order):
    """The last row first."""

    draws = False
    needs_scores = False

    def arrange(self, scores: NDArray[np.float64], *, context: Any) -> NDArray[np.integer]:
        """See the base class."""
        return np.arange(len(scores))[::-1].copy()


class DoubleWeighter(Weighter):
    """Less of the samples with a low loss."""

    draws = False

    def get_weighted_loss(self, losses: torch.Tensor, *, ctx: Any, model: Any, inputs: Any) -> torch.Tensor:
        """See the base class."""
        weights = losses.detach() / losses.detach().amax().clamp_min(1e-6)
        return (weights * losses).mean()


DOUBLES: dict[Kind, type[Any]] = {
    SELECTOR: DoubleSelector,
    MIXER: DoubleMixer,
    ORDER: DoubleOrder,
    WEIGHTER: DoubleWeighter,
}
