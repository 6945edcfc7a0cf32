"""Scoring the train dataset once, under the model as training would have it: ``dataflex-cli score``.

Everything up to the first batch is training's own: adapters, engine, mixed precision, a checkpoint with its optimizer
state. Then the selector gives every row its score, and the loop is left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.decision_hash import decision_hash
from dataflex.core.errors import blaming
from dataflex.core.files import SCORES
from dataflex.core.ranks.agreement import require_agreement
from dataflex.core.schedule import Segment
from dataflex.model.undisturbed import undisturbed
from dataflex.planning.answers import checked_scores
from dataflex.run.score_file import write_scores
from dataflex.run.scoring_weights import ScoringWeights
from dataflex.trainer.names import SelectTrainer
from dataflex.utils.progress import Progress


class ScoresWrittenError(Exception):
    """Not a failure: leaves the training loop when the scores are on disk.

    Attributes:
        path: Where they are; None on the ranks that write nothing.
    """

    def __init__(self, path: Path | None) -> None:
        super().__init__(str(path))
        self.path = path


class ScoreTrainer(SelectTrainer):
    """Scores instead of training."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Loads what training would load and scores every row.

        Raises:
            ScoresWrittenError: The scores are on disk.
        """
        self._dataflex_checkpoint = str(resume_from_checkpoint) if resume_from_checkpoint else None
        super().train(resume_from_checkpoint, *args, **kwargs)
        self._dataflex_score()  # a checkpoint of the last step: the loop asked for no batch

    def _dataflex_rows_of_an_update(self) -> int:
        return 0

    def begin_record(self) -> None:
        """Does nothing. Scoring is no run: it writes no configuration and no trace, and resumes nothing to train.

        Nor is the optimizer checked beforehand: it is used at once, and refused there.
        """

    def _dataflex_plan(self, segment: Segment) -> NDArray[np.int64]:
        self._dataflex_score()
        raise AssertionError("scoring leaves the loop")

    def _dataflex_score(self) -> None:
        step = self.state.global_step
        segment = self.schedule.segment_at(min(step, self.schedule.total - 1))
        context = self.update_context(segment.update or 0, self.schedule.updates, self.schedule.total)
        who = f"selector '{self.spec.axes[0].component.name}' scoring at step {step}"
        assert isinstance(self.model, torch.nn.Module)
        name = self.spec.axes[0].component.name
        with undisturbed(self.model), blaming(who), Progress(f"{name}: scoring at step {step}", bar=None):
            found = np.asarray(self.component.scores(model=self.model, step_id=step, context=context))
        rows = len(self.train_dataset)  # type: ignore[arg-type]  # the trainer refuses streams
        scores_N = checked_scores(found, count=rows, who=who, never=True)
        assert scores_N is not None
        require_agreement(decision_hash(scores_N), self.accelerator, who)
        path = None
        if self.is_world_process_zero():
            path = Path(self.output_dir) / SCORES
            weights = ScoringWeights.of(self.spec, self._dataflex_checkpoint).about()
            own = {"component": self.spec.axes[0].component.name, "step": step, "weights": weights}
            about = self.identity() | own
            write_scores(path, scores_N, self.train_dataset, self.processing_class, about)
        raise ScoresWrittenError(path)
