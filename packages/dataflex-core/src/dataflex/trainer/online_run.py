"""The part of a trainer by which the rewards of the answers that it samples become known, where it samples any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataflex.core.schedule import Schedule
from dataflex.planning.run_schedule import global_batch_size
from dataflex.trainer.callbacks import ObjectiveCallback
from dataflex.trainer.prepared_run import PreparedRun
from dataflex.trainer.rollouts import Rollouts


class OnlineRun(PreparedRun):
    """Stands around where the trainer underneath samples answers and computes their rewards, and changes neither.

    Attributes:
        rollouts: What is known of the answers; None where the trainer samples none.
    """

    rollouts: Rollouts | None = None
    args: Any

    @property
    def rows_of_a_step(self) -> int:
        """Rows of the plan that an optimizer step takes, over all ranks; prompts, where it samples answers to them."""
        return global_batch_size(self.args) if self.rollouts is None else self.rollouts.step_rows.of(1)

    def follow_answers(self, schedule: Schedule, done: Callable[[], None]) -> None:
        """Refuses a schedule that cuts through the answers of a generation, and looks at each step.

        Args:
            schedule: Of the run.
            done: Called when the run is over.
        """
        if self.rollouts is not None:
            self.rollouts.require_boundaries(schedule)
            self.add_callback(ObjectiveCallback(self.rollouts.step_done, done))

    def begin_answers(self) -> None:
        """Called when training begins."""
        if self.rollouts is not None:
            self.rollouts.begin()

    def record_weights(self) -> None:
        """Also writes what the rewards were since the last line into the record."""
        super().record_weights()
        line = {} if self.rollouts is None else self.rollouts.line()
        if line:
            self.recording.measured([line])

    def _prepare_inputs(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Makes a batch ready as the trainer underneath does, which samples the answers in here."""
        if self.rollouts is not None:
            self.rollouts.take(inputs)
        return super()._prepare_inputs(inputs, *args, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the rewards of the answers as the trainer underneath computes them, and keeps them by prompt."""
        compute: Any = super()._calculate_rewards  # type: ignore[misc]
        found = compute(*args, **kwargs)
        if self.rollouts is not None:
            self.rollouts.rewarded(found)
        return found
