"""The train dataloader that is planned as it goes: the heart of dataflex.

The training loop asks for exactly ``gradient_accumulation_steps`` batches before each optimizer step. So when the first
batch of a segment is asked for, the last optimizer step before it is done, and the model is in the state the next rows
must be chosen with. Selecting rows and mixing sources are therefore nothing but a plan of row numbers, made at that
moment; the loop itself stays the one of ``transformers``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.schedule import Schedule, Segment
from dataflex.planning.step_rows import StepRows


class PlannedLoader:
    """Walks the schedule segment by segment. No lookahead and no worker crosses from one segment into the next.

    Args:
        schedule: When segments begin and end.
        dataset: The train dataset; for its length alone.
        accumulation: Batches per optimizer step on this rank.
        step_rows: How many rows optimizer steps take, over all ranks.
        position: Returns the global steps done. A resumed run starts there, however large the dataset is.
        plan: Returns all rows of a segment, the same on every rank.
        batches: Makes this rank's batches from the rows that are left of a segment, without the first few micro-batches
            where these have been trained on.
        segment_at: Returns the segment that holds the step after so many steps; None asks the schedule.
    """

    def __init__(
        self,
        *,
        schedule: Schedule,
        dataset: Any,
        accumulation: int,
        step_rows: StepRows,
        position: Callable[[], int],
        plan: Callable[[Segment], NDArray[np.int64]],
        batches: Callable[[NDArray[np.int64], int], Iterable[Any]],
        segment_at: Callable[[int], Segment] | None = None,
    ) -> None:
        self.schedule = schedule
        self.dataset = dataset
        self._accumulation = accumulation
        self._step_rows = step_rows
        self._position = position
        self._plan = plan
        self._batches = batches
        self._segment_at = segment_at or schedule.segment_at

    def __len__(self) -> int:
        """Batches of this rank in the whole run, so that the loop sees one epoch."""
        return self.schedule.total * self._accumulation

    def __iter__(self) -> Iterator[Any]:
        step = self._position()
        if step == 0:
            # A DataLoader draws its base seed from the global generator when it starts. The loaders of the segments
            # have generators of their own, so draw it here: the run then is bit-identical to a static one on the same
            # rows.
            torch.empty((), dtype=torch.int64).random_()
        while step < self.schedule.total:
            segment = self._segment_at(step)
            rows = self._plan(segment)
            done, served = self._step_rows.done(step - segment.start, self._step_rows.served(segment.start))
            yield from self._batches(rows[done:], served)
            step = segment.stop
