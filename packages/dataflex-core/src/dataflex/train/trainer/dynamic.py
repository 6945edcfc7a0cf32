"""What the three trainers share: the component, its place in checkpoints, and the record of the run."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from transformers.trainer_utils import RemoveColumnsCollator

from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import RunSpec
from dataflex.core import stopping
from dataflex.core.component import Component
from dataflex.core.construct import construct, constructor_parameters
from dataflex.core.context import UpdateContext
from dataflex.core.errors import blaming
from dataflex.core.injected import SEED, TARGETS
from dataflex.core.kinds import Kind
from dataflex.core.registry import find
from dataflex.core.schedule import Schedule
from dataflex.run.checkpoints import (
    PREFIX,
    require_writable,
)
from dataflex.run.files import CACHE
from dataflex.run.identity import (
    TRAIN_DATASET,
    identity_of_arguments,
    identity_of_evaluation,
    identity_of_rows,
    identity_of_run,
)
from dataflex.run.lock import locked_on_rank_0
from dataflex.run.state import require_savable
from dataflex.scoring.target_rows import whole_sets
from dataflex.train.trainer.callback import ScheduleCallback
from dataflex.train.trainer.early_checks import EarlyChecks
from dataflex.train.trainer.engine import require_engine, require_loader
from dataflex.train.trainer.evaluation import evaluate_all
from dataflex.train.trainer.given import by_name, first_rows, require_rows_apart, require_spec
from dataflex.train.trainer.passes import PassKeeper
from dataflex.train.trainer.prepared import SourcesApart
from dataflex.train.trainer.renamed_weights import holds_renamed_weights, load_renamed_weights
from dataflex.train.trainer.run_folder import RunFolder
from dataflex.train.trainer.saving import CheckpointWriter, without_secret_fields
from dataflex.train.trainer.sharded_optimizer import fill_sharded_optimizer
from dataflex.train.trainer.steps import global_batch_size
from dataflex.train.trainer.stopping import StepStop
from dataflex.train.trainer.token_count import TokenCount
from dataflex.train.trainer.upstream.relied_on import require_training
from dataflex.train.trainer.workers import outliving_sigterm
from dataflex.utils.progress import without_bars

if TYPE_CHECKING:
    from transformers import Trainer

    Base = Trainer
else:
    Base = object


class DynamicTrainer(Base):
    """Base of the three mixins. Every public method of ``transformers.Trainer`` keeps its meaning.

    Args:
        *args: For the trainer underneath.
        dataflex: The run, as :func:`dataflex.config.check.check` returns it or as built by hand.
        target_dataset: Evaluation rows for the component, where they are other ones than those for evaluation.
        overwrite_output_dir: Whether a run that ``output_dir`` holds may be replaced by one that starts anew.
        **kwargs: For the trainer underneath.

    Attributes:
        kind: What its components are.
        spec: The run.
        saving: Writes checkpoints, and knows the last one.
        tokens: The tokens that were trained on, where they are counted.
        component: The selector, mixer or weighter; None for a static mixture.
        schedule: When it updates; set by each kind of trainer.
    """

    kind: Kind
    schedule: Schedule

    def __init__(
        self,
        *args: Any,
        dataflex: RunSpec,
        target_dataset: Any = None,
        overwrite_output_dir: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs = self.named(args, kwargs)
        require_spec(dataflex, self.kind)
        self._dataflex_target_dataset = target_dataset
        given = kwargs.get("args")
        if given is not None and given.should_save:
            require_writable(given.output_dir)
        require_training()
        self._dataflex_sources = SourcesApart(kwargs.get("train_dataset"), self.bases())
        super().__init__(**kwargs | {"train_dataset": self._dataflex_sources.shown})
        self.train_dataset = self._dataflex_sources.whole(self.train_dataset)
        self.spec = dataflex
        self.tokens = TokenCount(dataflex.llamafactory.get("include_effective_tokens_per_second") is True)
        require_engine(self.args, self.accelerator.distributed_type)
        require_loader(self.args, self.arguments.train_type)
        self.saving = CheckpointWriter(self)
        self._dataflex_stop = StepStop(self)
        overwrites = overwrite_output_dir or bool(vars(self.args).get("overwrite_output_dir"))
        self._dataflex_folder = RunFolder(self, overwrites)
        self._dataflex_early = EarlyChecks(self)
        self._dataflex_rows_evaluated: dict[str, int] = {}  # prefix of a metric -> rows
        self.component: Any = self._dataflex_constructed()
        self._dataflex_require_rows_apart()
        self.add_callback(ScheduleCallback(self))
        self.add_callback(PassKeeper())

    @classmethod
    def bases(cls) -> Sequence[type]:
        """Returns the classes of the trainer underneath, in the order in which Python asks them."""
        return cls.__mro__[cls.__mro__.index(DynamicTrainer) + 1 :]

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the trainer underneath's arguments by their names."""
        return by_name(self.bases(), args, kwargs)

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

    @property
    def run_id(self) -> str:
        """The run that a checkpoint is written by: made when it begins, kept when it is resumed, known in training."""
        assert self._dataflex_folder.id is not None, "a checkpoint is written while training"
        return self._dataflex_folder.id

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains. Where a checkpoint is given, dataflex's own state is restored from it before the loop starts.

        ``True`` resumes the newest complete checkpoint that the run recorded in ``output_dir`` wrote.

        Raises:
            ConfigError: Another run is writing to ``output_dir``, there is no such checkpoint, or nothing left to do.
            CheckpointError: The checkpoint belongs to another run, or is of a longer one.
            StoppedError: SIGTERM came, and the command line runs this process; see :mod:`dataflex.core.stopping`.
        """
        with locked_on_rank_0(self.output_dir, self.accelerator):
            resume_from_checkpoint = self._dataflex_folder.enter(resume_from_checkpoint)
            # transformers' own way to stop at SIGTERM, where it was asked for, is left alone
            catching = nullcontext() if vars(self.args).get("enable_jit_checkpoint") else stopping.caught()
            with catching, without_bars(bool(self.args.disable_tqdm)):
                output = super().train(resume_from_checkpoint, *args, **kwargs)
            self._dataflex_folder.trained()
            return output

    def keep_batch_size(self) -> None:
        """Trains with the batch size that was asked for. transformers 4.51 takes that of the checkpoint it resumes."""
        self._train_batch_size = self.args.train_batch_size

    def get_train_dataloader(self) -> Any:
        """Returns the loader of the trainer underneath; its workers leave SIGTERM to this process."""
        return outliving_sigterm(super().get_train_dataloader())

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`get_train_dataloader`."""
        return outliving_sigterm(super().get_eval_dataloader(*args, **kwargs))

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`get_train_dataloader`."""
        return outliving_sigterm(super().get_test_dataloader(*args, **kwargs))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Also takes the count of tokens out of the batches of the step."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        self.tokens.take(batches)
        return batches, num_items

    def begin_record(self) -> None:
        """Writes the resolved configuration and opens the trace. Called when training begins, on every rank.

        Raises:
            ConfigError: The run is finished.
            CheckpointError: The checkpoint is of a longer run.
        """
        self.keep_batch_size()
        self._dataflex_early.begin()
        self._dataflex_folder.begin()

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

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> dict[str, float]:
        """Evaluates as the trainer underneath does; several datasets have their mean over rows too.

        See :mod:`dataflex.train.trainer.evaluation` for the weighting. On every rank.
        """
        evaluate = functools.partial(super().evaluate, eval_dataset, ignore_keys, metric_key_prefix, **kwargs)
        datasets = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(datasets, Mapping):
            return evaluate()

        def rows() -> dict[str, int]:
            return {name: self._dataflex_rows_evaluated[f"{metric_key_prefix}_{name}"] for name in datasets}

        return evaluate_all(self, evaluate, rows, metric_key_prefix)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Evaluates as the trainer underneath does, and notes how many rows these were."""
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        self._dataflex_rows_evaluated[metric_key_prefix] = output.num_samples or 0
        return output

    def epoch_at(self, step: int) -> float | None:
        """Returns the epoch after ``step`` steps, or None where the loop's own count is right."""
        return None

    def identity(self) -> dict[str, Any]:
        """Returns what a checkpoint must share with the run that resumes it; plain values. Reads some of the rows."""
        return {
            **identity_of_run(self.spec, self.seed),
            **identity_of_evaluation(self.spec, self._dataflex_injectable()),
            "arguments": identity_of_arguments(self.args.to_dict()),  # type: ignore[no-untyped-call]
            "data": identity_of_rows(TRAIN_DATASET, self.train_dataset),
            "global_batch_size": global_batch_size(self.args),
        }

    @cached_property
    def own_identity(self) -> dict[str, Any]:
        """What :meth:`identity` returned the first time."""
        return self.identity()

    def dynamic_state(self) -> dict[str, Any]:
        """Returns the state that goes into a checkpoint."""
        return {
            "run": self.run_id,
            "step": self.state.global_step,
            "total_steps": self.state.max_steps,
            "identity": self.own_identity,
            "component": self.component_state(),
            "left_out": self.component.left_out if isinstance(self.component, Component) else 0,
            "save_only_model": self.args.save_only_model,
        }

    def component_state(self) -> dict[str, Any]:
        """Returns the component's state, after a look at whether a checkpoint can hold it and give it back."""
        wanted = self.spec.component
        if wanted is None or not isinstance(self.component, Component):
            return {}
        who = self.component_in_words()
        with blaming(who):
            state = self.component.state_dict()
            require_savable(state, who)
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`dynamic_state` returned."""
        if isinstance(self.component, Component):
            with blaming(self.component_in_words()):
                self.component.load_state_dict(state["component"])
            self.component.left_out = state["left_out"]

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

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        stops = self._dataflex_stop.agreed()
        if stops:
            self._dataflex_stop.hurry()
        takes_long = self.control.should_evaluate or self.control.should_save
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self.saving.settle()
        if takes_long and not stops:  # the wish may have come meanwhile: not a whole step later
            stops = self._dataflex_stop.agreed()
        if stops:
            self._dataflex_stop.stop()

    def _dataflex_constructed(self) -> Any:
        wanted = self.spec.component
        if wanted is None:
            return None
        cls, runtime = find(wanted.kind, wanted.name), self._dataflex_injectable()
        for key in TARGETS.intersection(constructor_parameters(cls)[0], runtime):
            runtime[key] = whole_sets(runtime[key])
        component = construct(cls, wanted.params, runtime)
        if isinstance(component, Component):
            with blaming(self.component_in_words()):
                component.bind(wanted.preset, wanted.params.get(SEED, self.seed), self.output_dir)
        return component

    def component_in_words(self) -> str:
        """Returns kind and name of the component, for messages."""
        wanted = self.spec.component
        return "the component" if wanted is None else f"{wanted.kind.name} '{wanted.preset}'"

    def _dataflex_require_rows_apart(self) -> None:
        """Tries the collator where the component looks at single rows of a batch."""
        if isinstance(self.component, Component) and self.component.reads_batches:
            rows = first_rows(self.train_dataset)
            require_rows_apart(self._dataflex_scoring_collator, rows, f"the {self.component_in_words()}")

    @cached_property
    def _dataflex_scoring_collator(self) -> Any:
        """The data collator as training calls it: without columns that the model does not take, where rows have any."""
        dataset: Any = self.train_dataset
        columns = dataset.column_names if isinstance(dataset, datasets.Dataset) else []
        visible = self._get_collator_with_removed_columns(self.data_collator, description="training")
        if isinstance(visible, RemoveColumnsCollator) and not set(columns) <= set(visible.signature_columns):
            return visible
        return self.data_collator

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Prepares each source of a mixture by itself, where the trainer underneath prepares datasets."""
        return self._dataflex_sources.prepare(
            dataset,
            lambda part: super(DynamicTrainer, self)._prepare_dataset(part, *args, **kwargs),  # type: ignore[misc]
        )

    def _dataflex_injectable(self) -> dict[str, Any]:
        """Runtime objects that a component may ask for by parameter name."""
        preset = self.spec.component.preset if self.spec.component is not None else ""
        return {
            "dataset": self.train_dataset,
            "eval_dataset": self.eval_dataset
            if self._dataflex_target_dataset is None
            else self._dataflex_target_dataset,
            "accelerator": self.accelerator,
            "data_collator": self._dataflex_scoring_collator,
            "output_dir": self.output_dir,
            "cache_dir": os.path.join(self.output_dir, CACHE, preset),
            "tokenizer": self.processing_class,
            "seed": self.seed,
        }

    def _dataflex_context(self, update: int, updates: int, total: int) -> UpdateContext:
        rate = self.optimizer.param_groups[0]["lr"] if self.optimizer is not None else self.args.learning_rate
        return UpdateContext(
            update,
            updates,
            self.state.global_step,
            total,
            float(rate),
            self.optimizer,
            self.args.train_batch_size,
        )
