"""The documented import path of :class:`dataflex.trainer.WeightTrainer`."""

from dataflex.trainer import WeightTrainer

__all__ = ["WeightTrainer"]
