"""The one trainer: a planner (which rows, in which order) and an objective (how much each token counts).

It is a mixin over any ``transformers.Trainer`` and holds parts; its overrides forward to them. A part that a run does
not have costs nothing and changes nothing, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any, ClassVar

import datasets
import torch
from transformers.trainer_utils import RemoveColumnsCollator

from dataflex.config.arguments import DataflexArguments
from dataflex.config.spec import RunSpec
from dataflex.core import sigterm
from dataflex.core.context import UpdateContext
from dataflex.core.errors import StoppedError
from dataflex.core.kinds import Kind
from dataflex.core.schedule import Schedule
from dataflex.objective.objective import Objective
from dataflex.objective.parts import Parts
from dataflex.planning.run_schedule import run_schedule
from dataflex.planning.sources import mixture_of
from dataflex.rows.batch_rows import BatchRows
from dataflex.run.checkpoints import require_writable
from dataflex.run.lock import locked_on_rank_0
from dataflex.run.record import RunRecord
from dataflex.trainer.callbacks import ObjectiveCallback, ScheduleCallback
from dataflex.trainer.clustered_rows import sources_of
from dataflex.trainer.early_checks import EarlyChecks
from dataflex.trainer.engine import require_engine, require_loader
from dataflex.trainer.evaluation import Evaluation
from dataflex.trainer.explanations import Explanations
from dataflex.trainer.given import by_name, given_rows, require_spec
from dataflex.trainer.objective_parts import objective_of, parts_of
from dataflex.trainer.online_run import OnlineRun
from dataflex.trainer.planned_batches import PlannedBatches
from dataflex.trainer.prepared import SourcesApart
from dataflex.trainer.recording import Recording
from dataflex.trainer.rollouts import Rollouts
from dataflex.trainer.run_components import Components
from dataflex.trainer.run_folder import RunFolder
from dataflex.trainer.run_lines import say_start
from dataflex.trainer.run_state import RunState
from dataflex.trainer.saved_run import SavedRun
from dataflex.trainer.saving import CheckpointWriter
from dataflex.trainer.segments import Segments
from dataflex.trainer.shared_scores import SharedScores
from dataflex.trainer.static_batches import StaticBatches
from dataflex.trainer.stopping import StepStop
from dataflex.trainer.token_count import TokenCount
from dataflex.trainer.trainer_stage import TrainerStage
from dataflex.trainer.workers import outliving_sigterm
from dataflex.upstream.relied_on import require_training
from dataflex.upstream.sampler_pass import PassKeeper
from dataflex.upstream.trl_datasets import add_reference_columns
from dataflex.utils.progress import without_bars


class DynamicTrainer(OnlineRun):
    """Trains on data that changes while the model learns.

    Every public method of ``transformers.Trainer`` keeps its meaning.

    Args:
        *args: For the trainer underneath.
        dataflex: The run, as :func:`dataflex.config.check.check` returns it or as built by hand.
        target_dataset: Evaluation rows for components, where they are other ones than those for evaluation.
        mixer_eval_dataset: Source -> held-out rows, for mixers that ask for them. Where it is None, they get the
            evaluation dataset if that is such a mapping.
        score_columns: Column -> (N,) numbers of the raw data, one for each row of the train dataset, for components and
            orders that score rows by a column which the rows do not have.
        token_columns: Column -> a list of numbers for each row of the train dataset, one for each of its tokens, which
            the rows do not have: :class:`~dataflex.rows.token_lists.TokenLists`.
        row_sources: Names of sources and (N,) the number of each row's, where the train dataset is made of several that
            the run does not tell apart: for its record.
        overwrite_output_dir: Whether a run that ``output_dir`` holds may be replaced by one that starts anew.
        **kwargs: For the trainer underneath.

    Attributes:
        kind: What the one component of a run must be; None where a run may have several.
        spec: The run.
        schedule: When it updates.
        components: Its selectors, mixer, order and weighter.
        mixture_manager: The sources and their shares; None where rows are of one.
        segments: Which rows it trains on at the moment; None where the loader of a static run is kept.
        training_objective: What weighs the loss or looks at losses; None where nothing does: batches then hold no row
            numbers. (transformers has an ``objective``, of a hyperparameter search.)
        batch_rows: The rows of the present micro-batch, where there is an objective.
        saving: Writes checkpoints, and knows the last one.
        explanations: Asks components why rows have their scores and weights.
        tokens: The tokens that were trained on, where they are counted.
        stage: What loss its rows have, where they are no texts.
        recording: Writes down how far the run is and what its time goes to.
    """

    kind: ClassVar[Kind | None] = None

    def __init__(
        self,
        *args: Any,
        dataflex: RunSpec,
        target_dataset: Any = None,
        mixer_eval_dataset: Mapping[str, Any] | None = None,
        score_columns: Mapping[str, Any] | None = None,
        token_columns: Mapping[str, Any] | None = None,
        row_sources: tuple[Sequence[str], Any] | None = None,
        overwrite_output_dir: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs = self.named(args, kwargs)
        require_spec(dataflex, self.kind, type(self))
        self.spec = dataflex
        rows = given_rows(dataflex, kwargs.get("train_dataset"), kwargs.get("args"))
        given = kwargs.get("args")
        if given is not None and given.should_save:
            require_writable(given.output_dir)
        require_training()
        self._dataflex_sources = SourcesApart(rows, self.bases(), given)
        self._dataflex_static: StaticBatches | None = None  # before the trainer underneath asks for a collator
        super().__init__(**kwargs | {"train_dataset": self._dataflex_sources.shown})
        self.train_dataset = self._dataflex_sources.whole(self.train_dataset)
        add_reference_columns(self, self.bases(), super().get_train_dataloader)
        self.stage = TrainerStage(self)
        self.train_dataset = sources_of(self, self.train_dataset)
        self.tokens = TokenCount(dataflex.llamafactory.get("include_effective_tokens_per_second") is True)
        require_engine(self.args, self.accelerator.distributed_type)
        require_loader(self.args, self.arguments.train_type, dataflex.plans)
        self.saving = CheckpointWriter(self)
        self._dataflex_stop = StepStop(self)
        self._dataflex_folder = RunFolder(self, overwrite_output_dir)
        self.recording = Recording(self)
        self._dataflex_evaluation = Evaluation(self)
        self.early = EarlyChecks(self)
        self.mixture_manager: Any = mixture_of(dataflex, self.train_dataset, self.seed)
        self._dataflex_evaluation.weigh(self.mixture_manager)
        self.token_columns = token_columns or {}
        self.components = Components(self, self.mixture_manager, target_dataset, mixer_eval_dataset)
        self.row_sources = row_sources
        self.rollouts = Rollouts.of(self)
        self.shared_scores = SharedScores(self, score_columns, rows)
        self.components.require_fitting()
        self.explanations = Explanations(self)
        self.add_callback(ScheduleCallback(self))
        self.add_callback(PassKeeper())
        self._dataflex_schedule()
        self.segments = None if self.components.stages is None else Segments(self, self.components.stages)
        self._dataflex_planned = None if self.segments is None else PlannedBatches(self, self.segments)
        self.batch_rows = BatchRows(lambda: self.train_dataset, texts=not self.stage.is_own)
        self.training_objective: Objective | None = objective_of(self, self._dataflex_parts())
        if self.training_objective is not None:
            self.add_callback(ObjectiveCallback(self.training_objective.step_done, self.training_done))
            self.early.of_model = self._dataflex_require_weighable
        self.follow_answers(self.schedule, self.training_done)
        if self.segments is None:
            self._dataflex_static = StaticBatches(self)
        self._dataflex_state = RunState(self)
        self.early.made(self._dataflex_rows_of_an_update())

    @classmethod
    def bases(cls) -> Sequence[type]:
        """Returns the classes of the trainer underneath, in the order in which Python asks them."""
        return cls.__mro__[cls.__mro__.index(SavedRun) + 1 :]

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the trainer underneath's arguments by their names."""
        return by_name(self.bases(), args, kwargs)

    @property
    def arguments(self) -> DataflexArguments:
        """Dataflex's own keys."""
        return self.spec.arguments

    @property
    def component(self) -> Any:
        """The component of a run that has one; None for a static mixture, and where there are several."""
        return self.components.only

    @component.setter
    def component(self, component: Any) -> None:
        self.components.replace(component)

    @property
    def seed(self) -> int:
        """What every random decision about data depends on: ``data_seed``, or ``seed`` where that is absent."""
        return int(self.args.seed if self.args.data_seed is None else self.args.data_seed)

    @property
    def run_id(self) -> str:
        """The run that a checkpoint is written by: made when it begins, kept when it is resumed, known in training."""
        assert self._dataflex_folder.id is not None, "a checkpoint is written while training"
        return self._dataflex_folder.id

    @property
    def record(self) -> RunRecord:
        """Trace and selections of the run."""
        return self._dataflex_folder.record

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains. Where a checkpoint is given, dataflex's own state is restored from it before the loop starts.

        ``True`` resumes the newest complete checkpoint that the run recorded in ``output_dir`` wrote.

        Raises:
            ConfigError: Another run is writing to ``output_dir``, there is no such checkpoint, or nothing left to do.
            CheckpointError: The checkpoint belongs to another run, or is of a longer one.
            StoppedError: SIGTERM came, and the command line runs this process; see :mod:`dataflex.core.sigterm`.
        """
        with locked_on_rank_0(self.output_dir, self.accelerator):
            resume_from_checkpoint = self._dataflex_folder.enter(resume_from_checkpoint)
            # transformers' own way to stop at SIGTERM, where it was asked for, is left alone
            catching = nullcontext() if vars(self.args).get("enable_jit_checkpoint") else sigterm.caught()
            with catching, without_bars(bool(self.args.disable_tqdm)), self.recording.training():
                output = super().train(resume_from_checkpoint, *args, **kwargs)
            self._dataflex_folder.trained()
            return output

    def keep_batch_size(self) -> None:
        """Trains with the batch size that was asked for. transformers 4.51 takes that of the checkpoint it resumes."""
        self._train_batch_size = self.args.train_batch_size

    def begin_record(self) -> None:
        """Writes the resolved configuration and opens the trace. Called when training begins, on every rank.

        Raises:
            ConfigError: The run is finished.
            CheckpointError: The checkpoint is of a longer run.
        """
        if self._dataflex_folder.begins_anew:
            self._dataflex_state.forget()
        self.keep_batch_size()
        self.early.begin()
        self._dataflex_folder.begin()
        self.begin_answers()
        if self.training_objective is not None:
            for kind, first in self.training_objective.open_lines.items():
                self.record.take_back(kind, first)
        say_start(self)

    def get_train_dataloader(self) -> Any:
        """Returns the one loader of a planned run, or that of the trainer underneath; workers leave SIGTERM to us."""
        if self._dataflex_planned is not None:
            return self._dataflex_planned.loader()
        assert self._dataflex_static is not None
        return outliving_sigterm(self._dataflex_static.loader(super().get_train_dataloader))

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`get_train_dataloader`."""
        return outliving_sigterm(super().get_eval_dataloader(*args, **kwargs))

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`get_train_dataloader`."""
        return outliving_sigterm(super().get_test_dataloader(*args, **kwargs))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Also takes the count of tokens and the rows out of the batches of the step, and counts its samples."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        self.tokens.take(batches)
        if self.training_objective is not None:
            self.batch_rows.take(batches)
            self.training_objective.begin_step(batches)
            if self.trained_rows is not None and batches:
                self.trained_rows.add(self.batch_rows.of_step, self.state.global_step, self.batch_rows.flattened)
        return batches, num_items

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Trains on a micro-batch as the trainer underneath does, by the objective."""
        train = super().training_step
        if self.training_objective is None:
            return train(model, inputs, *args, **kwargs)
        return self.training_objective.training_step(train, model, inputs, *args, **kwargs)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Computes the loss as the trainer underneath does, by the objective."""
        compute = super().compute_loss
        if self.training_objective is None:
            return compute(model, inputs, *args, **kwargs)
        return self.training_objective.compute_loss(compute, model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds what the weights were to the line of the training loss."""
        super().log(logs if self.training_objective is None else self.training_objective.logged(logs), *args, **kwargs)

    def training_done(self) -> None:
        """Tells those who look at steps that the run is over, and writes down what was collected last. Collective."""
        for looking in (self.training_objective, self.rollouts):
            if looking is not None:
                looking.training_done()
                self.record_weights()
        if self.trained_rows is not None:
            self.trained_rows.finish()

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> dict[str, float]:
        """Evaluates as the trainer underneath does; several datasets have their mean over rows too. On every rank."""
        evaluate = partial(super().evaluate, eval_dataset, ignore_keys, metric_key_prefix, **kwargs)
        return self._dataflex_evaluation.of(evaluate, eval_dataset, metric_key_prefix)

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
        self._dataflex_evaluation.rows[metric_key_prefix] = output.num_samples or 0
        return output

    @property
    def stream_places(self) -> Any:
        """Where the sources are read, which are streams; None where they are not."""
        return None if self._dataflex_planned is None else self._dataflex_planned.places

    @property
    def trained_rows(self) -> Any:
        """The rows that a run without a plan has trained on; None where rows are planned."""
        return None if self._dataflex_static is None else self._dataflex_static.trained

    def epoch_at(self, step: int) -> float | None:
        """Returns the epoch after ``step`` steps, or None where the loop's own count is right."""
        return None if self.segments is None else self.schedule.epoch_at(step)

    def component_in_words(self) -> str:
        """Returns kind and name of the component of a run that has one, for messages."""
        return self.spec.axes[0].component.in_words if len(self.spec.axes) == 1 else "the components"

    def stopped_while_deciding(self) -> StoppedError:
        """Returns what ends a run that was stopped between two steps, while a component decided."""
        return self._dataflex_stop.while_deciding()

    def update_context(self, update: int, updates: int, total: int) -> UpdateContext:
        """Returns the state of the run at an update, with the scores that its components share. Collective."""
        rate = self.optimizer.param_groups[0]["lr"] if self.optimizer is not None else self.args.learning_rate
        return UpdateContext(
            update, updates, self.state.global_step, total, float(rate), self.optimizer,
            device_batch=self._train_batch_size, step_rows=self.rows_of_a_step,
            scores=self.shared_scores.at_update(), explains=self.explanations.rows > 0,
        )  # fmt: skip

    @cached_property
    def scoring_collator(self) -> Any:
        """The data collator as training calls it: without columns that the model does not take, where rows have any."""
        dataset: Any = self.train_dataset
        columns = dataset.column_names if isinstance(dataset, datasets.Dataset) else []
        visible = self._get_collator_with_removed_columns(self.data_collator, description="training")
        if isinstance(visible, RemoveColumnsCollator) and not set(columns) <= set(visible.signature_columns):
            return self.stage.collator(visible)
        return self.stage.collator(self.data_collator)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        stops = self._dataflex_stop.agreed()
        if stops:
            self._dataflex_stop.hurry()
        takes_long = self.control.should_evaluate or self.control.should_save
        if self.control.should_log:  # here, as every rank comes along
            self.record_weights()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self.saving.settle()
        if takes_long and not stops:  # the wish may have come meanwhile: not a whole step later
            stops = self._dataflex_stop.agreed()
        if stops:
            self._dataflex_stop.stop()

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        collate = super()._get_collator_with_removed_columns(data_collator, description=description)
        return collate if self._dataflex_static is None else self._dataflex_static.collator(collate)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        if self._dataflex_static is None:
            return super()._get_train_sampler(*args, **kwargs)
        return self._dataflex_static.sampler(super()._get_train_sampler, args, kwargs)

    def _dataflex_schedule(self) -> None:
        rows = None if self.rollouts is None else self.rollouts.step_rows
        self.schedule: Schedule = run_schedule(self.spec, self.args, self.train_dataset, rows)
        if self.components.stages is not None:
            self.args.ignore_data_skip = True  # the loader itself starts at the right step
        if self.components.stages is not None or self.spec.steps(self.args.max_steps).total is not None:
            self.args.max_steps = self.schedule.total  # else the loop counts the epochs itself

    def _dataflex_parts(self) -> Parts:
        return parts_of(self)

    def _dataflex_rows_of_an_update(self) -> int:
        """Returns the most rows that an update trains on."""
        return 0 if self.segments is None else self.segments.step_rows.of(self.schedule.longest_update)

    def _dataflex_require_weighable(self) -> None:
        assert self.training_objective is not None
        self.training_objective.require(*self.components.trial())
