"""The part of a trainer by which the record sees what is logged and what the time goes to."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.objective.objective import Objective
from dataflex.run.run_clock import DECIDING, EVALUATING, SAVING
from dataflex.run.tracked_numbers import weight_histograms
from dataflex.trainer.explanations import Explanations
from dataflex.trainer.recording import Recording
from dataflex.trainer.saved_run import SavedRun
from dataflex.trainer.trackers import send_histograms


class RecordedRun(SavedRun):
    """Stands around what the trainer underneath logs, evaluates and saves, and changes none of it.

    Attributes:
        recording: Writes it down.
        explanations: Asks components why rows have their scores and weights.
        segments: Which rows are trained on.
        training_objective: What weighs the loss or looks at losses; None where nothing does.
    """

    recording: Recording
    explanations: Explanations
    segments: Any
    training_objective: Objective | None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs as the trainer underneath does."""
        before = len(self.state.log_history)
        super().log(logs, *args, **kwargs)
        self.recording.logged(self.state.log_history[before:])

    def record_weights(self) -> None:
        """Writes what weights and losses were since the last lines into the record. Collective."""
        if self.training_objective is None:
            return
        weights = self.training_objective.weights_line()
        losses = self.training_objective.losses_line(weights)
        self.recording.measured([line for line in (weights, losses) if line])
        if weights and self.is_world_process_zero():
            send_histograms(self.callback_handler.callbacks, weight_histograms(weights), self.state.global_step)
        if weights:
            self.explanations.of_weights(weights)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates as the trainer underneath does."""
        with self.recording.clock.spending(EVALUATING):
            return super().evaluate(*args, **kwargs)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Saves the model as the trainer underneath does."""
        with self.recording.clock.spending(SAVING):
            super().save_model(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.recording.clock.spending(SAVING):
            super()._save_checkpoint(*args, **kwargs)

    def _dataflex_plan(self, segment: Any) -> NDArray[np.int64]:
        with self.recording.clock.spending(DECIDING):
            rows: NDArray[np.int64] = self.segments.rows(segment)
            return rows
