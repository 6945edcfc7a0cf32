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
from dataflex.core.context import UpdateContext
from dataflex.core.errors import StoppedError
from dataflex.core.kinds import Kind
from dataflex.core.schedule import Schedule
from dataflex.core.score_names import SEEN, ScoreName
from dataflex.planning.mixture import MixtureManager
from dataflex.planning.run_schedule import global_batch_size
from dataflex.run.checkpoints import (
    PREFIX,
    require_writable,
)
from dataflex.run.identity import (
    TRAIN_DATASET,
    identity_of_arguments,
    identity_of_evaluation,
    identity_of_rows,
    identity_of_run,
)
from dataflex.run.lock import locked_on_rank_0
from dataflex.run.record import RunRecord
from dataflex.scoring.named_scores import NamedScores
from dataflex.scoring.seen_losses import SeenLosses
from dataflex.trainer.callbacks import ScheduleCallback
from dataflex.trainer.components import Components
from dataflex.trainer.early_checks import EarlyChecks
from dataflex.trainer.engine import require_engine, require_loader
from dataflex.trainer.evaluation import evaluate_all
from dataflex.trainer.given import by_name, require_spec
from dataflex.trainer.prepared import SourcesApart
from dataflex.trainer.run_folder import RunFolder
from dataflex.trainer.saving import CheckpointWriter, without_secret_fields
from dataflex.trainer.stopping import StepStop
from dataflex.trainer.token_count import TokenCount
from dataflex.trainer.workers import outliving_sigterm
from dataflex.upstream.passes import PassKeeper
from dataflex.upstream.relied_on import require_training
from dataflex.upstream.renamed_weights import holds_renamed_weights, load_renamed_weights
from dataflex.upstream.sharded_optimizer import fill_sharded_optimizer
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
    _dataflex_held_out: Any = None
    _dataflex_streams = False

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
        self.early = EarlyChecks(self)
        self._dataflex_rows_evaluated: dict[str, int] = {}  # prefix of a metric -> rows
        self.seen_losses: SeenLosses | None = None
        self.mixture_manager: Any = self._dataflex_mixture()
        self.components = Components(self, self.mixture_manager, target_dataset, self._dataflex_held_out)
        self._dataflex_scores = self._dataflex_shared_scores()
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
        self.early.begin()
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

        See :mod:`dataflex.trainer.evaluation` for the weighting. On every rank.
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
            **identity_of_evaluation(self.spec, self.components.injectable()),
            "arguments": identity_of_arguments(self.args.to_dict()),  # type: ignore[no-untyped-call]
            "data": identity_of_rows(TRAIN_DATASET, self.train_dataset),
            "global_batch_size": global_batch_size(self.args),
        }

    @cached_property
    def own_identity(self) -> dict[str, Any]:
        """What :meth:`identity` returned the first time."""
        return self.identity()

    def gather_state(self) -> None:
        """Brings together what ranks know each for itself, before a checkpoint. Collective."""
        if self.seen_losses is not None:
            self.seen_losses.gather(self.accelerator)

    def dynamic_state(self) -> dict[str, Any]:
        """Returns the state that goes into a checkpoint."""
        return {
            "run": self.run_id,
            "step": self.state.global_step,
            "total_steps": self.state.max_steps,
            "identity": self.own_identity,
            "components": self.components.state(),
            "scores": None if self._dataflex_scores is None else self._dataflex_scores.state_dict(),
            "seen_losses": None if self.seen_losses is None else self.seen_losses.state_dict(),
            "save_only_model": self.args.save_only_model,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`dynamic_state` returned."""
        if self._dataflex_scores is not None:
            self._dataflex_scores.load_state_dict(state["scores"])
        if self.seen_losses is not None:
            self.seen_losses.load_state_dict(state["seen_losses"])
        self.components.restore(state["components"])

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

    @property
    def component(self) -> Any:
        """The component of a run that has one; None for a static mixture."""
        found = [component for _, component in self.components]
        return found[0] if len(found) == 1 else None

    @component.setter
    def component(self, component: Any) -> None:
        self.components.replace(component)

    def _dataflex_mixture(self) -> MixtureManager | None:
        """Returns the sources of the train dataset and their shares; None where it is one."""
        return None

    def _dataflex_shared_scores(self) -> NamedScores | None:
        """Returns the scores that components share; None where no rows are planned."""
        if self.components.stages is None or self._dataflex_streams:
            return None
        wanted = any(isinstance(each, Component) and each.takes_seen for _, each in self.components)
        order = self.spec.order
        by_seen = order is not None and order.by is not None and ScoreName.of(order.by).kind == SEEN
        dataset: Any = self.train_dataset
        self.seen_losses = SeenLosses(len(dataset)) if wanted or by_seen else None
        return NamedScores(dataset, self.scoring_collator, self.accelerator, seen=self.seen_losses)

    @property
    def component_name(self) -> str:
        """The component of a run that has one; ``static`` for a static mixture."""
        return "static" if self.spec.component is None else self.spec.component.name

    def component_in_words(self) -> str:
        """Returns kind and name of the component of a run that has one, for messages."""
        wanted = self.spec.component
        return "the component" if wanted is None else wanted.in_words

    def _dataflex_require_rows_apart(self) -> None:
        """Tries the collator where a component looks at single rows of a batch."""
        self.components.require_rows_apart()

    @cached_property
    def scoring_collator(self) -> Any:
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

    @property
    def record(self) -> RunRecord:
        """Trace and selections of the run."""
        return self._dataflex_folder.record

    def stopped_while_deciding(self) -> StoppedError:
        """Returns what ends a run that was stopped between two steps, while a component decided."""
        return self._dataflex_stop.while_deciding()

    def update_context(self, update: int, updates: int, total: int) -> UpdateContext:
        """Returns the state of the run at an update, with the scores that its components share. Collective."""
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
