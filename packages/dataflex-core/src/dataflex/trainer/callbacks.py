"""Opens the record when training begins, and sets ``state.epoch`` from the schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dataflex.trainer.host import Host


class ScheduleCallback(TrainerCallback):
    """Corrects ``state.epoch``, and requests logging, evaluation and saving where those are per epoch.

    A planned run is one long epoch to the training loop; the schedule knows better. The loop itself handles the end of
    the last epoch.

    Args:
        trainer: The trainer it belongs to.
    """

    def __init__(self, trainer: Host) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the record and the count of tokens."""
        self._trainer.tokens.begin()
        self._trainer.begin_record()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Sets the epoch; asks for what the user wants once an epoch when a whole one is done."""
        epoch = self._trainer.epoch_at(state.global_step)
        if epoch is None:
            return control
        before = self._trainer.epoch_at(state.global_step - 1) or 0.0
        state.epoch = epoch
        if math.floor(epoch) > math.floor(before) and state.global_step < state.max_steps:
            control.should_log = control.should_log or args.logging_strategy == "epoch"
            control.should_evaluate = control.should_evaluate or args.eval_strategy == "epoch"
            control.should_save = control.should_save or args.save_strategy == "epoch"
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keeps the epoch after the loop's own end of epoch."""
        epoch = self._trainer.epoch_at(state.global_step)
        state.epoch = state.epoch if epoch is None else epoch


class ObjectiveCallback(TrainerCallback):
    """Tells of each optimizer step, in time for the checkpoint of that step, and of the end.

    Args:
        step_done: Called after each step, on every rank.
        training_done: Called when training has ended, on every rank.
    """

    def __init__(self, step_done: Callable[[], None], training_done: Callable[[], None]) -> None:
        self._step_done, self._training_done = step_done, training_done

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A step is done."""
        self._step_done()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The last step is done."""
        self._training_done()
