"""Stopping where a run can be taken up: at the end of an optimizer step, with a checkpoint, on all ranks at once."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import distributed

from dataflex.config.checks.parsed_config import named_checkpoint
from dataflex.core import sigterm
from dataflex.core.errors import StoppedError
from dataflex.trainer.host import Host


class StepStop:
    """Stops the trainer's run where the process was asked to (see :mod:`dataflex.core.sigterm`).

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Host) -> None:
        self._trainer = trainer

    def agreed(self) -> bool:
        """Returns whether any rank was asked to stop, the same on all. Collective; called at the end of each step.

        Costs nothing on one rank, and on several one reduction of a number on the CPU: it waits for no device.
        """
        if not sigterm.may_be_asked():
            return False
        if self._trainer.accelerator.num_processes == 1:
            return sigterm.asked()
        wish = torch.tensor([int(sigterm.asked())])
        distributed.all_reduce(wish, op=distributed.ReduceOp.MAX, group=self._cpu_group)
        return bool(wish.item())

    def hurry(self) -> None:
        """Leaves out an evaluation that is due, unless training depends on its result. There may be little time."""
        if self._trainer.args.metric_for_best_model is None:
            self._trainer.control.should_evaluate = False

    def stop(self) -> NoReturn:
        """Saves a checkpoint of the step, unless that is done, and ends the run. Collective.

        Raises:
            StoppedError: Always, on every rank.
        """
        trainer, step = self._trainer, self._trainer.state.global_step
        folder = self._saved()
        trainer.accelerator.wait_for_everyone()  # a rank that ends has a launcher end the others
        if folder is None:
            raise StoppedError(f"stopped by SIGTERM at step {step}; nothing was saved, as save_strategy is no")
        raise StoppedError(f"stopped by SIGTERM at step {step} with the checkpoint {folder} -> {self._way_on()}")

    def while_deciding(self) -> StoppedError:
        """Returns what ends a run that was stopped between two steps, while a component decided.

        Ranks leave a scoring pass each at a batch of its own, and cannot save together any more. A single one saves
        the steps that are done.
        """
        trainer, step = self._trainer, self._trainer.state.global_step
        what = f"stopped by SIGTERM while scoring at step {step}"
        folder = self._saved() if trainer.accelerator.num_processes == 1 and step > 0 else None
        if folder is not None:
            what += f" with the checkpoint {folder}"
        elif step > 0:
            what += "; the steps after the last checkpoint will be trained again"
        return StoppedError(f"{what} -> {self._way_on()}")

    def _saved(self) -> str | None:
        trainer = self._trainer
        if trainer.args.save_strategy == "no":
            return None
        if trainer.saving.newest_step != trainer.state.global_step:
            trainer._save_checkpoint(trainer.model, None)
            trainer.control = trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
            trainer.saving.settle()
        newest: str | None = trainer.saving.newest
        return newest

    def _way_on(self) -> str:
        keys = self._trainer.spec.llamafactory
        if keys.get("overwrite_output_dir") or named_checkpoint(keys.get("resume_from_checkpoint")) not in (None, True):
            return "add resume_from_checkpoint=true to the same command to go on from there"
        return "the same command goes on from there"

    @cached_property
    def _cpu_group(self) -> Any:
        """The ranks, over a backend that reduces numbers on the CPU. Made by all ranks together."""
        if distributed.get_backend() == distributed.Backend.GLOO:
            return distributed.group.WORLD
        return distributed.new_group(backend=distributed.Backend.GLOO, timeout=self._trainer.args.ddp_timeout_delta)
