"""The documented import path of the trainers; they live in :mod:`dataflex.trainer`."""

from dataflex.trainer import (
    BY_TRAIN_TYPE,
    DynamicTrainer,
    MixTrainer,
    SelectTrainer,
    WeightTrainer,
    trainer_class,
)

__all__ = ["BY_TRAIN_TYPE", "DynamicTrainer", "MixTrainer", "SelectTrainer", "WeightTrainer", "trainer_class"]
