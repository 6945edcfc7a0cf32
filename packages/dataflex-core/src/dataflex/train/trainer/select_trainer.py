"""The documented import path of :class:`dataflex.trainer.SelectTrainer`."""

from dataflex.trainer import SelectTrainer

__all__ = ["SelectTrainer"]
