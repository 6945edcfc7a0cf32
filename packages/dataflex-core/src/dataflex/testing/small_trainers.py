"""A small run over a plain ``transformers.Trainer``, made in one call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer

from dataflex.api.dynamic_call import dynamic
from dataflex.api.keywords import allowed
from dataflex.testing.quiet_arguments import tiny_training_args
from dataflex.testing.tiny_models import tiny_model
from dataflex.testing.token_rows import pad_collate


def small_trainer(
    folder: Path, train_dataset: Any, *, model: Any = None, args: Mapping[str, Any] | None = None, **given: Any
) -> Any:
    """Returns a trainer that is ready to train.

    Args:
        folder: The folder of the run.
        train_dataset: Rows, or a mapping from sources to theirs.
        model: The model; None for a tiny one.
        args: Fields of ``TrainingArguments`` in place of those of :func:`~dataflex.testing.tiny_training_args`.
        **given: Keywords of :func:`dataflex.dynamic`; what it does not know goes to the trainer.

    Raises:
        ConfigError: What ``dynamic`` or the trainer refuses.
    """
    keywords: Any = {key: value for key, value in given.items() if key in allowed()}
    ours = {"eval_dataset": None, "data_collator": pad_collate}
    others = ours | {key: value for key, value in given.items() if key not in keywords}
    arguments = tiny_training_args(folder, **({"max_steps": -1} | dict(args or {})))
    return dynamic(Trainer, **keywords)(
        model=tiny_model() if model is None else model, args=arguments, train_dataset=train_dataset, **others
    )
