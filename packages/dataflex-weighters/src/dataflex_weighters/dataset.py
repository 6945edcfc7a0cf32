"""``dataset``: a constant weight for each source. No paper: the baseline for weighters that compare sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.cost import Ahead, Cost
from dataflex.core.errors import Problem
from dataflex.core.parameter_checks import FLOAT32_MOST, between, flag, require
from dataflex.core.registry import register_weighter
from dataflex.train.weighter.base_weighter import StepContext, Weighter

from dataflex_weighters.parts.source_checks import known_sources, names_of, source_weights

if TYPE_CHECKING:
    import torch


@register_weighter("dataset")
class DatasetWeighter(Weighter):
    """A constant weight for each source of the train dataset.

    Args:
        dataset: The train dataset, which knows its sources.
        weights: Source -> weight, at least 0; null for none.
        default: The weight of the sources that ``weights`` does not name, at least 0.
        normalise: Whether the weights are scaled so that their mean over the rows of the train dataset is 1.

    Raises:
        ConfigError: A parameter has another value, or names a source that is not there; the message holds every
            problem.
    """

    draws = False

    def __init__(
        self,
        dataset: Any,
        weights: Mapping[str, float] | None = None,
        default: float = 1.0,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        require(
            "dataset weighter",
            between("default", default, 0, FLOAT32_MOST),
            flag("normalise", normalise),
            known_sources(dataset),
            *source_weights("weights", weights, names_of(dataset)),
            _none_counts(weights, default, names_of(dataset)),
        )
        names = names_of(dataset)
        by_source = np.array([(weights or {}).get(name, default) for name in names], dtype=np.float64)
        mean = float(by_source @ dataset.sizes / max(1, dataset.sizes.sum()))
        if not mean > 0:
            require("dataset weighter", Problem("weights", "no source has rows and a weight above 0", "let one count"))
        self.by_source = (by_source / mean if normalise else by_source).astype(np.float32)

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Weights are looked up. See the base class."""
        return Cost()

    @classmethod
    def needs_sources(cls, params: Mapping[str, Any]) -> bool:
        """Always. See the base class."""
        return True

    def get_weighted_loss(
        self, losses: torch.Tensor, *, ctx: StepContext, model: Any = None, inputs: Any = None
    ) -> torch.Tensor:
        """Returns the mean of w_i l_i over this rank's B samples. See the base class."""
        return (ctx.of_sources(self.by_source).to(losses.device) * losses).mean()


def _none_counts(weights: Any, default: Any, names: tuple[str, ...]) -> Problem | None:
    """Returns a problem where the weight of every source is 0."""
    if (
        not names
        or not isinstance(weights, Mapping | None)
        or any((weights or {}).get(name, default) for name in names)
    ):
        return None
    key = "default" if weights is None else "weights"
    return Problem(key, "no source has rows and a weight above 0", "let one count")
