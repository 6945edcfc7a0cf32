"""The mixin of runs whose rows are planned: selecting, mixing and ordering."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sized
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from dataflex.config.spec import RunSpec
from dataflex.planning.loader import PlannedLoader
from dataflex.planning.run_schedule import require_map_style, run_schedule
from dataflex.planning.selecting import Chosen
from dataflex.trainer.dynamic import DynamicTrainer
from dataflex.trainer.given import require_spec
from dataflex.trainer.planned_batches import batches_of
from dataflex.trainer.segments import Segments


class PlannedTrainer(DynamicTrainer):
    """Trains on rows that are planned segment by segment. See :mod:`dataflex.planning.loader` for why this works."""

    def __init__(self, *args: Any, dataflex: RunSpec, **kwargs: Any) -> None:
        kwargs = self.named(args, kwargs)
        require_spec(dataflex, self.kind)
        require_map_style(kwargs.get("train_dataset"), dataflex.arguments.train_type)
        super().__init__(dataflex=dataflex, **kwargs)
        self.schedule = run_schedule(dataflex, self.args, self.train_dataset)
        self.args.max_steps = self.schedule.total
        self.args.ignore_data_skip = True  # the loader itself starts at the right step
        assert self.components.stages is not None
        self.segments = Segments(self, self.components.stages)

    def get_train_dataloader(self) -> Any:
        """Returns the one loader of the run, a :class:`~dataflex.planning.loader.PlannedLoader`."""
        dataset, collate = self.train_dataset, self.data_collator
        # Which columns are unused is read off the model's forward: now, as an engine may wrap the model later.
        if isinstance(dataset, datasets.Dataset):
            dataset = self._remove_unused_columns(dataset, description="training")
        else:
            collate = self._get_collator_with_removed_columns(collate, description="training")
        return PlannedLoader(
            schedule=self.schedule,
            dataset=self._dataflex_examples(),
            accumulation=self.args.gradient_accumulation_steps,
            global_batch_size=self.segments.batch_size,
            position=lambda: self.state.global_step,
            plan=self._dataflex_plan,
            batches=functools.partial(self._dataflex_batches, dataset, self.tokens.counting(collate)),
            segment_at=self.segments.at,
        )

    def begin_record(self) -> None:
        """Also forgets the rows of an earlier training by the same trainer."""
        if self._dataflex_folder.begins_anew:
            self.segments.forget()
        super().begin_record()

    def epoch_at(self, step: int) -> float | None:
        """Returns the epoch of the schedule."""
        return self.schedule.epoch_at(step)

    def dynamic_state(self) -> dict[str, Any]:
        """Adds the schedule, and the rows of the segment that is being trained on."""
        return super().dynamic_state() | self.segments.state_dict()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores the components and the segment."""
        self.segments.require_continues(state)
        super().restore(state)
        self.segments.load_state_dict(state)

    def _dataflex_plan(self, segment: Any) -> NDArray[np.int64]:
        return self.segments.rows(segment)

    def _dataflex_examples(self) -> Sized:
        """Returns what the loop counts as the examples that it trains on."""
        dataset: Sized = self.train_dataset  # type: ignore[assignment]  # the constructor refuses others
        return dataset

    def _dataflex_batches(self, dataset: Any, collate: Any, rows: NDArray[np.int64]) -> Iterator[Any]:
        """Yields this rank's batches of the rows that are left of a segment, on the device."""
        return batches_of(self, dataset, collate, Chosen(rows), self._train_batch_size)
