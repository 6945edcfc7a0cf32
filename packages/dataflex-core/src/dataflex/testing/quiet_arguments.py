"""Training arguments that suit a test: silent, reproducible, on the device of the tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflex.testing.devices import device

if TYPE_CHECKING:
    from transformers import TrainingArguments


def tiny_training_args(output_dir: str | Path, **overrides: Any) -> TrainingArguments:
    """Returns ``TrainingArguments`` for a short run that logs each step and saves nothing.

    It runs on :func:`~dataflex.testing.device`.

    Args:
        output_dir: Where a checkpoint would go.
        **overrides: Any field of ``TrainingArguments``; an override wins.
    """
    from transformers import TrainingArguments  # here, because who only wants a model need not wait for the trainer

    defaults: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device().type == "cpu",
        "seed": 42,
    }
    return TrainingArguments(output_dir=str(output_dir), **(defaults | overrides))
