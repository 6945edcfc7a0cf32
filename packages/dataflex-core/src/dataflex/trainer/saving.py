"""How a checkpoint is written: it is marked when it is complete, and only then are older ones deleted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dataflex.core.plugins import call_hook
from dataflex.core.secret_values import is_secret
from dataflex.run.checkpoints import begin_writing, mark_complete, naming_write_errors, rotate
from dataflex.run.state import save_state
from dataflex.trainer.host import Host

if TYPE_CHECKING:
    from transformers import TrainingArguments


class CheckpointWriter:
    """Stands around the trainer's own writing of a checkpoint.

    Args:
        trainer: The trainer that writes.
    """

    def __init__(self, trainer: Host) -> None:
        self._trainer = trainer
        self._written: tuple[str, int] | None = None  # a checkpoint whose callbacks are still running, and its step
        self.newest: str | None = None  # the last one that is whole, and its step
        self.newest_step = -1

    @contextmanager
    def writing(self, folder: str) -> Iterator[None]:
        """Inside of it, the trainer underneath writes its part of a checkpoint. Collective.

        Raises:
            CheckpointError: It cannot be written.
        """
        trainer, args = self._trainer, self._trainer.args
        limit = args.save_total_limit
        trainer.gather_state()
        with naming_write_errors(folder, trainer.run_id):
            if args.should_save:
                begin_writing(folder)
                save_state(folder, trainer.dynamic_state())  # before any other file: by it the folder is known as ours
            trainer.accelerator.wait_for_everyone()
            args.save_total_limit = None  # nothing is deleted before this one is whole
            try:
                yield
            finally:
                args.save_total_limit = limit
            trainer.accelerator.wait_for_everyone()
            if args.should_save:
                mark_complete(folder, trainer.run_id, trainer.state.global_step)
        self._written = folder, trainer.state.global_step

    def settle(self) -> None:
        """Ends the writing after the callbacks, which may have added to it or written files again. Collective.

        A callback may have had the checkpoint written inside of a step, so the step may be another one by now.
        """
        if self._written is None:
            return
        (folder, step), self._written = self._written, None
        self.newest, self.newest_step = folder, step
        trainer, args = self._trainer, self._trainer.args
        trainer.accelerator.wait_for_everyone()
        if args.should_save:
            with naming_write_errors(folder, trainer.run_id):
                mark_complete(folder, trainer.run_id, step)
            rotate(os.path.dirname(folder), args.save_total_limit, trainer.state.best_model_checkpoint, folder)
        trainer.accelerator.wait_for_everyone()
        call_hook("dataflex_after_checkpoint", step=step, folder=folder)


@contextmanager
def without_secret_fields(args: TrainingArguments) -> Iterator[None]:
    """Inside of it, the arguments hold no secret."""
    kept = {key: value for key, value in vars(args).items() if is_secret(key) and value is not None}
    vars(args).update(dict.fromkeys(kept))
    try:
        yield
    finally:
        vars(args).update(kept)
