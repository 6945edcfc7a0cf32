"""The documented import path of :class:`dataflex.trainer.MixTrainer`."""

from dataflex.trainer import MixTrainer

__all__ = ["MixTrainer"]
