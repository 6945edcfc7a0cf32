"""``custom``: a starting point to copy for a weighter of your own. Unchanged, it weighs all samples 1.

Copy the file, rename the class, register it under a new name and put your formula into ``get_weighted_loss``; the run's
YAML then needs ``plugins: [your_file.py]``, ``train_type: dynamic_weight`` and ``component_name: your_name``.
docs/plugins.md shows how to publish it as a package instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dataflex.core.parameter_checks import one_of, require
from dataflex.core.registry import register_weighter
from dataflex.train.weighter.base_weighter import Weighter

if TYPE_CHECKING:
    import torch


@register_weighter("custom")
class CustomWeighter(Weighter):
    """A weighter to copy: ``uniform`` returns the plain mean of the losses.

    Args:
        strategy: Which formula; only ``uniform`` is there. Add yours.
        **kwargs: None are known; the base class refuses them by name.

    Raises:
        ConfigError: ``strategy`` is not known, or there are other parameters.
    """

    draws = False

    def __init__(self, strategy: str = "uniform", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require("custom weighter", one_of("strategy", strategy, ("uniform",)))
        self.strategy = strategy

    def get_weighted_loss(
        self, losses: torch.Tensor, *, ctx: Any = None, model: Any = None, inputs: Any = None
    ) -> torch.Tensor:
        """Returns one number for this rank's micro-batch; its derivative by ``losses`` weighs the samples.

        Args:
            losses: (B,) fp32, mean token loss of each sample, with gradient.
            ctx: The trainer: ``ctx.state.global_step``, ``ctx.accelerator``, ...
            model: The model being trained.
            inputs: The micro-batch: ``input_ids`` (B, T), ``labels`` (B, T), ...
        """
        return losses.mean()
