"""A trainer with a weighter on a tiny model, for tests of weighters."""

from __future__ import annotations

from typing import Any

from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import ComponentSpec, RunSpec
from dataflex.core.kinds import WEIGHTER
from dataflex.testing import pad_collate, tiny_model, tiny_training_args
from dataflex.train.trainer import WeightTrainer, trainer_class
from transformers import Trainer


def weighted(folder, name, params, rows, *, keys=None, config=None, model=None, target=None, **args) -> Any:
    """Returns a trainer of the weighter `name`.

    Args:
        folder: Its output_dir.
        name: The weighter.
        params: The weighter's parameters, or None.
        rows: The train dataset, or several by name.
        keys: Keys of dataflex.
        config: Keys of LLaMA-Factory.
        model: The model; a tiny one where None.
        target: The evaluation set.
        **args: Training arguments.
    """
    return trainer_class(WeightTrainer, Trainer)(
        model=model or tiny_model(),
        args=tiny_training_args(folder, **args),
        train_dataset=rows,
        eval_dataset=target,
        data_collator=pad_collate,
        dataflex=RunSpec(
            DataflexArguments(train_type="dynamic_weight", component_name=name, **(keys or {})),
            ComponentSpec(WEIGHTER, name, name, params or {}),
            config or {},
        ),
        overwrite_output_dir=True,
    )
