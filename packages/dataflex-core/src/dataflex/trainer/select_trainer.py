"""Training on rows that a selector chooses (``train_type: dynamic_select``)."""

from __future__ import annotations

from typing import Any

from dataflex.config.spec import RunSpec
from dataflex.core.kinds import SELECTOR
from dataflex.trainer.planned import PlannedTrainer


class SelectTrainer(PlannedTrainer):
    """Asks the selector for ``warmup`` rows first and for the rows of each update after that."""

    kind = SELECTOR

    def __init__(self, *args: Any, dataflex: RunSpec, **kwargs: Any) -> None:
        super().__init__(*args, dataflex=dataflex, **kwargs)
        self.early.made(self._dataflex_rows_of_an_update())

    def _dataflex_rows_of_an_update(self) -> int:
        """Returns the most rows that an update asks for."""
        return self.schedule.longest_update * self.segments.batch_size
