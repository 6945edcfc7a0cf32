"""The batches of a planned run: one loader for the run, and inside of it one for each segment."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, SequentialSampler

from dataflex.core.component import seeded
from dataflex.planning.loader import PlannedLoader
from dataflex.planning.sources import are_streams
from dataflex.rows.row_numbers import NumberedRows, NumberingCollator, NumberingRows
from dataflex.rows.score_columns import column_names
from dataflex.rows.stream_places import StreamPlaces
from dataflex.rows.views import MixedSources, PlannedRows
from dataflex.trainer.host import Host
from dataflex.trainer.segments import Segments
from dataflex.trainer.workers import outliving_sigterm
from dataflex.upstream.online_trainers import rows_loaded, sampler_of
from dataflex.upstream.trl_datasets import with_pairs_of_batch


class PlannedBatches:
    """Makes the loader of a planned run.

    Args:
        trainer: The trainer.
        segments: Which rows it trains on.

    Attributes:
        places: Where the sources are read, which are streams; None where they are not.
    """

    def __init__(self, trainer: Host, segments: Segments) -> None:
        self._trainer, self._segments = trainer, segments
        rows = trainer.train_dataset
        self.places = StreamPlaces(rows) if isinstance(rows, MixedSources) and are_streams(rows) else None

    def loader(self) -> PlannedLoader:
        """Returns the one loader of the run."""
        trainer = self._trainer
        dataset, collate = trainer.train_dataset, trainer.data_collator
        # Which columns are unused is read off the model's forward: now, as an engine may wrap the model later.
        if isinstance(dataset, datasets.Dataset):
            dataset = trainer._remove_unused_columns(dataset, description="training")
        else:
            collate = trainer._get_collator_with_removed_columns(collate, description="training")
        collate = with_pairs_of_batch(trainer.bases(), trainer.train_dataset, collate)
        step_rows = self._segments.step_rows
        counted = range(step_rows.of(trainer.schedule.total)) if self.places else trainer.train_dataset
        return PlannedLoader(
            schedule=trainer.schedule,
            dataset=counted,  # what the loop counts as the examples that it trains on
            accumulation=trainer.args.gradient_accumulation_steps,
            step_rows=step_rows,
            position=lambda: trainer.state.global_step,
            plan=trainer._dataflex_plan,
            batches=partial(self._batches, dataset, trainer.tokens.counting(collate)),
            segment_at=self._segments.at,
        )

    def _batches(self, dataset: Any, collate: Any, rows: NDArray[np.int64], served: int) -> Iterator[Any]:
        """Yields this rank's batches of the rows that are left of a segment, on the device.

        Args:
            dataset: The train dataset, without unused columns.
            collate: Makes a batch of rows.
            rows: (S,) the rows.
            served: Batches that were trained on; above 0 only where the rows of one are trained on several times.
        """
        if self._trainer.rollouts is not None:
            yield from islice(self._of_prompts(dataset, collate, rows), served, None)
            return
        given = self._segments.chosen.weights
        weights = None if given is None else given[len(given) - len(rows) :].astype(np.float32)
        if self.places is None:
            yield from self._of_rows(dataset, collate, rows, weights)
            return
        self.places.enter()
        yield from self.places.follow(self._of_rows(dataset, self.places.placing(collate), rows, weights))

    def _of_prompts(self, dataset: Any, collate: Any, rows: NDArray[np.int64]) -> Iterator[Any]:
        """Yields the prompts of each micro-batch's generation, as the sampler of the trainer lays them out."""
        planned = NumberedRows(PlannedRows(dataset, rows), rows)
        sampler, size = sampler_of(self._trainer, planned), rows_loaded(self._trainer)
        parts = dataset.sources if isinstance(dataset, MixedSources) else []
        columns = dict.fromkeys(name for part in parts for name in column_names(part))
        return self._loaded(planned, NumberingRows(collate, tuple(columns)), sampler, size)

    def _of_rows(
        self, dataset: Any, collate: Any, rows: NDArray[np.int64], weights: NDArray[np.float32] | None
    ) -> Iterator[Any]:
        planned: Any = PlannedRows(dataset, rows)
        if self._trainer.training_objective is not None:
            planned, collate = NumberedRows(planned, rows, weights), NumberingCollator(collate)
        return self._loaded(planned, collate, SequentialSampler(planned), self._trainer._train_batch_size)

    def _loaded(self, planned: Any, collate: Any, sampler: Any, size: int) -> Iterator[Any]:
        """Yields this rank's batches of planned rows.

        Args:
            planned: The rows of a segment, of all ranks.
            collate: Makes a batch of some of them.
            sampler: Their order.
            size: Rows of a batch.
        """
        trainer, args = self._trainer, self._trainer.args
        generator = torch.Generator()
        generator.manual_seed(seeded(trainer.seed, "loader", trainer.state.global_step))
        loader = DataLoader(
            planned,
            batch_size=size,
            sampler=sampler,
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=_worker_start(args),
            pin_memory=args.dataloader_pin_memory,
            generator=generator,
        )
        prepared = outliving_sigterm(trainer.accelerator.prepare_data_loader(loader))
        try:
            yield from prepared
        finally:
            trainer.accelerator._dataloaders.remove(
                prepared
            )  # it keeps every loader it prepared; ours come by the dozen


def _worker_start(args: Any) -> str | None:
    """Returns how workers are started; an argument that transformers 5.24 has and 5.6 has not."""
    how: str | None = vars(args).get("dataloader_multiprocessing_context")
    return how if args.dataloader_num_workers else None
