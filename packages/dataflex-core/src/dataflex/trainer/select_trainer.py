"""Training on rows that a selector chooses (``train_type: dynamic_select``)."""

from __future__ import annotations

from typing import Any

from dataflex.config.spec import RunSpec
from dataflex.core.context import UpdateContext
from dataflex.core.kinds import SELECTOR
from dataflex.core.schedule import Segment
from dataflex.interfaces.selector import Selection
from dataflex.planning.answers import checked_rows, checked_scores
from dataflex.trainer.planned import Plan, PlannedTrainer


class SelectTrainer(PlannedTrainer):
    """Asks the selector for ``warmup`` rows first and for the rows of each update after that."""

    kind = SELECTOR
    verb = "select"

    def __init__(self, *args: Any, dataflex: RunSpec, **kwargs: Any) -> None:
        super().__init__(*args, dataflex=dataflex, **kwargs)
        self._dataflex_early.made(self._dataflex_rows_of_an_update())

    def _dataflex_rows_of_an_update(self) -> int:
        """Returns the most rows that an update asks for."""
        return self.schedule.longest_update * self._dataflex_global_batch_size

    def decide(self, segment: Segment, count: int, context: UpdateContext, who: str) -> Plan:
        """Returns the rows that the selector chose, checked."""
        selector = self.component
        if segment.update is None:
            # The warm-up of a run that was ended inside of it and is continued: the rows of its later part.
            whole = (
                count
                + (segment.start - self.schedule.segment_at(segment.start).start) * self._dataflex_global_batch_size
            )
            answer = selector.warmup(whole, replacement=selector.replacement)[whole - count :]
        else:
            answer = selector.select(model=self.model, step_id=context.step, num_samples=count, context=context)
        chosen = answer if isinstance(answer, Selection) else Selection(answer)
        size = len(self.train_dataset)  # type: ignore[arg-type]  # the trainer refuses streams
        rows = checked_rows(chosen.indices, count=count, size=size, replacement=selector.replacement, who=who)
        scores = checked_scores(chosen.scores, count=count, who=who)
        return Plan(rows, scores, news=f"chose {count} of {size} rows")
