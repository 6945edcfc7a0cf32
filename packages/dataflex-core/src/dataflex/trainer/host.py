"""What the parts of a trainer see of it. A trainer holds its parts; they know it by this alone."""

from __future__ import annotations

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
    saving: Any
    early: Any
    tokens: Any

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
