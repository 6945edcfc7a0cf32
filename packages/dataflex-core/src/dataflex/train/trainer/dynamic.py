"""What the three trainers share: the component, its place in checkpoints, and the record of the run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import RunSpec
from dataflex.core.component import Component
from dataflex.core.construct import construct
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ComponentError, ConfigError, DataflexError
from dataflex.core.plugins import plugin_manager
from dataflex.core.registry import find
from dataflex.run.checkpoints import (
    PREFIX,
    begin_writing,
    mark_complete,
    naming_write_errors,
    newest_complete,
    require_complete,
    require_writable,
    rotate,
)
from dataflex.run.config_file import write_config
from dataflex.run.files import CACHE
from dataflex.run.record import RunRecord
from dataflex.run.state import load_state, require_same, save_state
from dataflex.train.trainer.callback import ScheduleCallback
from dataflex.train.trainer.cpu_ranks import allow_numbered_cpus
from dataflex.train.trainer.engine import require_engine
from dataflex.train.trainer.passes import PassKeeper
from dataflex.train.trainer.renamed_weights import holds_renamed_weights, load_renamed_weights
from dataflex.train.trainer.sharded_optimizer import fill_sharded_optimizer
from dataflex.utils.logging import logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import Trainer

    Base = Trainer
else:
    Base = object


class DynamicTrainer(Base):
    """Base of the three mixins. Every public method of ``transformers.Trainer`` keeps its meaning.

    Args:
        *args: For the trainer underneath.
        dataflex: The run, as :func:`dataflex.config.check.check` returns it or as built by hand.
        **kwargs: For the trainer underneath.

    Attributes:
        spec: The run.
        component: The selector, mixer or weighter; None for a static mixture.
    """

    def __init__(self, *args: Any, dataflex: RunSpec, **kwargs: Any) -> None:
        given = kwargs.get("args", args[1] if len(args) > 1 else None)
        if given is not None and given.should_save:
            require_writable(given.output_dir)
        super().__init__(*args, **kwargs)
        self.spec = dataflex
        require_engine(self.args, self.accelerator.distributed_type)
        if self.args.auto_find_batch_size:
            raise ConfigError(
                f"auto_find_batch_size: true cannot be combined with train_type: {self.arguments.train_type}, because "
                "the plan depends on the batch size -> set per_device_train_batch_size"
            )
        self._written: str | None = None  # a checkpoint whose callbacks are still running
        self._record = RunRecord(self.output_dir, writes=self.is_world_process_zero())
        self.component: Any = self._constructed()
        self.add_callback(ScheduleCallback(self))
        self.add_callback(PassKeeper())

    @property
    def arguments(self) -> DataflexArguments:
        """Dataflex's own keys."""
        return self.spec.arguments

    @property
    def seed(self) -> int:
        """What every random decision about data depends on: ``data_seed``, or ``seed`` where that is absent."""
        return int(self.args.seed if self.args.data_seed is None else self.args.data_seed)

    @property
    def output_dir(self) -> str:
        """The run's folder."""
        return str(self.args.output_dir)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains. Where a checkpoint is given, dataflex's own state is restored from it before the loop starts."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = newest_complete(self.output_dir)
            if resume_from_checkpoint is None:
                raise ConfigError(
                    f"resume_from_checkpoint: true, but {self.output_dir} holds no complete checkpoint -> leave it out"
                )
        if resume_from_checkpoint:
            require_complete(resume_from_checkpoint)
            state = load_state(resume_from_checkpoint)
            require_same(state["identity"], self.identity(), resume_from_checkpoint)
            if state.get("save_only_model"):
                logger.warning(
                    "%s was saved with save_only_model: true, without optimizer, scheduler and random states: what "
                    "follows is not the run that was never stopped",
                    resume_from_checkpoint,
                )
            self.restore(state)
            allow_numbered_cpus()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def keep_batch_size(self) -> None:
        """Trains with the batch size that was asked for. transformers 4.51 takes that of the checkpoint it resumes."""
        self._train_batch_size = self.args.train_batch_size

    def begin_record(self) -> None:
        """Writes the resolved configuration and opens the trace. Called when training begins, on every rank."""
        self.keep_batch_size()
        self._record.begin(self.state.global_step)
        if self.is_world_process_zero():
            write_config(self.spec, self.output_dir)

    def epoch_at(self, step: int) -> float | None:
        """Returns the epoch after ``step`` steps, or None where the loop's own count is right."""
        return None

    def identity(self) -> dict[str, Any]:
        """Returns what a checkpoint must share with the run that resumes it; plain values."""
        component = self.spec.component
        return {
            "train_type": self.arguments.train_type,
            "component": None if component is None else component.name,
            "params": {} if component is None else {key: str(value) for key, value in component.params.items()},
            "rows": len(self.train_dataset),  # type: ignore[arg-type]  # dynamic training refuses streams
            "seed": self.seed,
        }

    def dynamic_state(self) -> dict[str, Any]:
        """Returns the state that goes into a checkpoint."""
        known = isinstance(self.component, Component)
        state = self.component.state_dict() if known else {}
        return {
            "step": self.state.global_step,
            "identity": self.identity(),
            "component": state,
            "left_out": self.component.left_out if known else 0,
            "save_only_model": self.args.save_only_model,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`dynamic_state` returned."""
        if isinstance(self.component, Component):
            self.component.load_state_dict(state["component"])
            self.component.left_out = state.get("left_out", 0)  # an older checkpoint has none

    def _save_checkpoint(self, model: Any, trial: Any, *args: Any, **kwargs: Any) -> None:
        folder = os.path.join(self._get_output_dir(trial=trial), f"{PREFIX}{self.state.global_step}")
        limit = self.args.save_total_limit
        with naming_write_errors(folder):
            if self.args.should_save:
                begin_writing(folder)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                save_state(folder, self.dynamic_state())
            self.args.save_total_limit = None  # nothing is deleted before this one is whole
            try:
                super()._save_checkpoint(model, trial, *args, **kwargs)
            finally:
                self.args.save_total_limit = limit
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                mark_complete(folder)
        self._written = folder

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

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self._written is not None:
            self._settle(self._written)
            self._written = None

    def _settle(self, folder: str) -> None:
        """Ends the writing of a checkpoint, after the callbacks: they may have added to it or written files again."""
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            with naming_write_errors(folder):
                mark_complete(folder)
            rotate(os.path.dirname(folder), self.args.save_total_limit, self.state.best_model_checkpoint, folder)
        self.accelerator.wait_for_everyone()
        plugin_manager().hook.dataflex_after_checkpoint(step=self.state.global_step, folder=folder)

    def _constructed(self) -> Any:
        wanted = self.spec.component
        if wanted is None:
            return None
        component = construct(find(wanted.kind, wanted.name), wanted.params, self._injectable())
        if isinstance(component, Component):
            component.bind(wanted.preset, self.seed)
        return component

    def _injectable(self) -> dict[str, Any]:
        """Runtime objects that a component may ask for by parameter name."""
        preset = self.spec.component.preset if self.spec.component is not None else ""
        return {
            "dataset": self.train_dataset,
            "eval_dataset": self.eval_dataset,
            "accelerator": self.accelerator,
            "data_collator": self.data_collator,
            "output_dir": self.output_dir,
            "cache_dir": os.path.join(self.output_dir, CACHE, preset),
            "tokenizer": self.processing_class,
            "seed": self.seed,
        }

    def _context(self, update: int, updates: int, total: int) -> UpdateContext:
        rate = self.optimizer.param_groups[0]["lr"] if self.optimizer is not None else self.args.learning_rate
        return UpdateContext(update, updates, self.state.global_step, total, float(rate), self.optimizer)

    @contextmanager
    def _blaming(self, who: str) -> Iterator[None]:
        """Turns whatever a component raises into an error that names it, with the original as its cause."""
        try:
            yield
        except ComponentError as error:
            if str(error).startswith(who):
                raise
            raise ComponentError(f"{who}: {error}") from error.__cause__
        except DataflexError:
            raise
        except Exception as error:  # a component may raise anything; the cause keeps its traceback
            raise ComponentError(f"{who} raised {type(error).__name__}: {error}") from error
