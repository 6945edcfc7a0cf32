"""What a trainer saves of a run and takes up again: the model as its result, and checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dataflex.run.checkpoints import PREFIX
from dataflex.trainer.run_folder import RunFolder
from dataflex.trainer.run_state import RunState
from dataflex.trainer.saving import CheckpointWriter, without_secret_fields
from dataflex.upstream.renamed_weights import holds_renamed_weights, load_renamed_weights
from dataflex.upstream.sharded_optimizer import fill_sharded_optimizer

if TYPE_CHECKING:
    from transformers import Trainer

    Base = Trainer
else:
    Base = object


class SavedRun(Base):
    """The half of :class:`~dataflex.trainer.dynamic.DynamicTrainer` that writes to disk and reads from it.

    Attributes:
        saving: Writes checkpoints, and knows the last one.
    """

    saving: CheckpointWriter
    _dataflex_folder: RunFolder
    _dataflex_state: RunState

    @property
    def output_dir(self) -> str:
        """The run's folder."""
        return str(self.args.output_dir)

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Saves the model as the trainer underneath does."""
        is_result = output_dir is None or Path(output_dir).absolute() == Path(self.output_dir).absolute()
        if is_result:
            self._dataflex_folder.results.begin()
        super().save_model(output_dir, *args, **kwargs)
        if is_result:
            self._dataflex_folder.saved()

    def save_state(self) -> None:
        """Saves the trainer's state as the trainer underneath does: from here on the run is finished."""
        self._dataflex_folder.results.begin()
        super().save_state()
        self._dataflex_folder.end()

    def save_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Saves metrics as the trainer underneath does; evaluation comes after the state is saved."""
        self._dataflex_folder.results.begin()
        super().save_metrics(*args, **kwargs)
        self._dataflex_folder.saved()

    def identity(self) -> dict[str, Any]:
        """Returns what a checkpoint must share with the run that resumes it; plain values. Reads some of the rows."""
        return self._dataflex_state.identity()

    @cached_property
    def own_identity(self) -> dict[str, Any]:
        """What :meth:`identity` returned the first time."""
        return self.identity()

    def gather_state(self) -> None:
        """Brings together what ranks know each for itself, before a checkpoint. Collective."""
        self._dataflex_state.gather()

    def dynamic_state(self) -> dict[str, Any]:
        """Returns the state that goes into a checkpoint."""
        return self._dataflex_state.state_dict()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`dynamic_state` returned."""
        self._dataflex_state.load_state_dict(state)

    def _save_checkpoint(self, model: Any, trial: Any, *args: Any, **kwargs: Any) -> None:
        folder = os.path.join(self._get_output_dir(trial=trial), f"{PREFIX}{self.state.global_step}")
        with self.saving.writing(folder):
            super()._save_checkpoint(model, trial, *args, **kwargs)

    def _save(self, *args: Any, **kwargs: Any) -> None:
        with without_secret_fields(self.args):  # they are pickled beside the weights
            super()._save(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        whole = self.model if model is None else model
        assert isinstance(whole, torch.nn.Module)
        if not self.is_fsdp_enabled and holds_renamed_weights(whole, resume_from_checkpoint):
            load_renamed_weights(whole, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.is_fsdp_enabled:
            assert isinstance(self.model, torch.nn.Module)
            fill_sharded_optimizer(self.model, self.optimizer, checkpoint)
