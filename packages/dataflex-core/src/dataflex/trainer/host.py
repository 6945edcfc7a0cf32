"""What the parts of a trainer see of it. A trainer holds its parts; they know it by this alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from dataflex.config.spec import RunSpec
from dataflex.core.context import UpdateContext
from dataflex.core.schedule import Schedule
from dataflex.run.record import RunRecord


class Host(Protocol):
    """A dynamic trainer, as its parts see it: what ``transformers.Trainer`` has, and what the run is."""

    args: Any
    accelerator: Any
    model: Any
    optimizer: Any
    state: Any
    control: Any
    callback_handler: Any
    train_dataset: Any
    eval_dataset: Any
    processing_class: Any
    spec: RunSpec
    schedule: Schedule
    components: Any
    segments: Any
    training_objective: Any
    batch_rows: Any
    shared_scores: Any
    row_sources: Any
    token_columns: Any
    mixture_manager: Any
    data_collator: Any
    _train_batch_size: int
    saving: Any
    recording: Any
    early: Any
    explanations: Any
    tokens: Any
    stage: Any
    rollouts: Any

    @classmethod
    def bases(cls) -> Sequence[type]:
        """Returns the classes of the trainer underneath."""

    @property
    def rows_of_a_step(self) -> int:
        """Rows of the plan that an optimizer step takes, over all ranks."""

    @property
    def stream_places(self) -> Any:
        """Where the sources are read, which are streams; None where they are not."""

    @property
    def trained_rows(self) -> Any:
        """The rows that a run without a plan has trained on; None where rows are planned."""

    def keep_batch_size(self) -> None:
        """Trains with the batch size that was asked for."""

    def record_weights(self) -> None:
        """Writes what the weights were into the record. Collective."""

    def training_done(self) -> None:
        """Ends what goes on while training does. Collective."""

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any: ...

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any: ...

    def _dataflex_plan(self, segment: Any) -> Any: ...

    @property
    def seed(self) -> int:
        """What every random decision about data depends on."""

    @property
    def output_dir(self) -> str:
        """The run's folder."""

    @property
    def run_id(self) -> str:
        """The run."""

    @property
    def own_identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that resumes it."""

    @property
    def record(self) -> RunRecord:
        """Trace and selections of the run."""

    @property
    def scoring_collator(self) -> Any:
        """The data collator as training calls it."""

    def update_context(self, update: int, updates: int, total: int) -> UpdateContext:
        """Returns the state of the run at an update."""

    def stopped_while_deciding(self) -> Exception:
        """Returns what ends a run that was stopped between two steps."""

    def gather_state(self) -> None:
        """Brings together what ranks know each for itself, before a checkpoint. Collective."""

    def dynamic_state(self) -> dict[str, Any]:
        """Returns the state that goes into a checkpoint."""

    def restore(self, state: Any) -> None:
        """Restores what :meth:`dynamic_state` returned."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None: ...

    def is_world_process_zero(self) -> bool:
        """Whether this process writes."""

    def log(self, logs: dict[str, float]) -> None:
        """Logs metrics."""

    def begin_record(self) -> None:
        """Writes the resolved configuration and opens the trace."""

    def epoch_at(self, step: int) -> float | None:
        """Returns the epoch after so many steps."""
