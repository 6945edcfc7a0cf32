"""Two steps of training, plainly and with a weighter that weighs every row alike."""

from __future__ import annotations

import tempfile
from typing import Any

from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core import registry
from dataflex.core.kinds import WEIGHTER
from dataflex.testing import tiny_training_args
from dataflex.train.trainer import WeightTrainer, trainer_class
from dataflex.train.weighter.base_weighter import Weighter
from torch import nn
from transformers import Trainer

from tests.models.build import Collator, rows

NAME = "uniform_of_the_sweep"


class Uniform(Weighter):
    """Changes nothing."""

    def get_weighted_loss(self, losses: Any, *, ctx: Any = None, model: Any = None, inputs: Any = None) -> Any:
        return losses.mean()


def weighted_run(model: nn.Module, collate: Collator, logits: str) -> list[float]:
    """Returns the losses of its steps."""
    if NAME not in dict(registry.registered(WEIGHTER)):
        registry.register_weighter(NAME)(Uniform)
    arguments = DataflexArguments(
        train_type="dynamic_weight", component_name=NAME, weight_logits=logits, weight_objective="token"
    )
    spec = RunSpec(arguments, ComponentSpec(WEIGHTER, NAME, NAME, {}), {})
    kind = trainer_class(WeightTrainer, Trainer)
    return _losses(kind, model, collate, dataflex=spec, overwrite_output_dir=True)


def plain_run(model: nn.Module, collate: Collator) -> list[float]:
    """Returns the losses of its steps."""
    return _losses(Trainer, model, collate)


def _losses(kind: Any, model: nn.Module, collate: Collator, **options: Any) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        args = tiny_training_args(
            folder, max_steps=2, per_device_train_batch_size=2, optim="sgd", learning_rate=0.01, max_grad_norm=0.0
        )
        trainer = kind(model=model, args=args, train_dataset=rows(), data_collator=collate, **options)
        trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]
