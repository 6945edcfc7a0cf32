"""That a run through LLaMA-Factory is the dynamic one it was asked for.

Our trainers stand in for names of LLaMA-Factory's workflows. A workflow that takes its trainer from another name would
train statically and say nothing: such a trainer is stopped when it begins, and the run that had none of ours is no
success.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dataflex.core.errors import ConfigError
from dataflex.trainer import DynamicTrainer


class Started:
    """The dynamic trainer of this process, once LLaMA-Factory has made it.

    Args:
        train_type: What was asked for.
    """

    def __init__(self, train_type: str) -> None:
        self._train_type = train_type
        self._trainer: DynamicTrainer | None = None
        self._began = False

    def making(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the constructor of a dynamic trainer; what it makes is the trainer of the run."""

        def make_trainer(*args: Any, **kwargs: Any) -> Any:
            self._trainer = trainer = make(*args, **kwargs)
            trainer.add_callback(_OnBegin(self._begin))
            return trainer

        return make_trainer

    def only_ours(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Returns ``Trainer.train`` that refuses to train with another trainer in place of the dynamic one."""
        started = self

        @functools.wraps(original)
        def train(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not started._began and not isinstance(self, DynamicTrainer):
                found = f"{type(self).__module__}.{type(self).__qualname__}"
                raise ConfigError(f"LLaMA-Factory trains with {found}, {started._what_else()}")
            return original(self, *args, **kwargs)

        return train

    def missed_after(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function that trains in this process, which then refuses to end as if it had been dynamic."""

        @functools.wraps(original)
        def training_function(*args: Any, **kwargs: Any) -> Any:
            answer = original(*args, **kwargs)
            if not self._began:
                raise ConfigError(f"LLaMA-Factory came to its end without the trainer of dataflex, {self._what_else()}")
            return answer

        return training_function

    def tokens_per_second(self, original: Callable[..., float]) -> Callable[..., float]:
        """Returns LLaMA-Factory's count of tokens per second and rank, of the tokens that were trained on."""

        @functools.wraps(original)
        def calculate_tps(dataset: Any, metrics: dict[str, float], stage: str) -> float:
            assert self._trainer is not None, "it is called after training"
            accelerator = self._trainer.accelerator
            tokens = self._trainer.tokens.total(accelerator)
            return tokens / float(metrics["train_runtime"]) / int(accelerator.num_processes)

        return calculate_tps

    def _begin(self) -> None:
        self._began = True

    def _what_else(self) -> str:
        return (
            f"so this is not the train_type: {self._train_type} that was asked for -> switch off what brings another "
            "trainer, or use train_type: static"
        )


class _OnBegin(TrainerCallback):
    def __init__(self, begin: Callable[[], None]) -> None:
        self._begin = begin

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The record of the run has begun: the trainer's own callback comes first."""
        self._begin()
