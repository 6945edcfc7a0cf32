"""A weighter: the plain mean, and the place for a formula of yours."""

from dataflex.core.registry import register_weighter
from dataflex.train.weighter.base_weighter import Weighter


@register_weighter("custom_uniform")
class CustomWeighter(Weighter):
    """Changes nothing until you write another strategy than ``uniform``."""

    def __init__(self, strategy="uniform", **kwargs):
        super().__init__(**kwargs)
        if strategy != "uniform":
            raise ValueError(f"strategy: found {strategy!r}, allowed: uniform")
        self.strategy = strategy

    def get_weighted_loss(self, losses, *, ctx=None, model=None, inputs=None):
        """Returns one number; its derivative by ``losses``, (B,), weighs the samples of the micro-batch."""
        return losses.mean()
