"""The mixin of runs that must know which rows of the train dataset a batch holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.config.spec import RunSpec
from dataflex.core.errors import ComponentError
from dataflex.rows.row_numbers import ROW_NUMBERS, NumberedRows, NumberingCollator
from dataflex.rows.views import MixedSources
from dataflex.trainer.dynamic import DynamicTrainer


class NumberedTrainer(DynamicTrainer):
    """Trains on the rows of a static run in its order, and knows their numbers.

    The train dataset may be a mapping ``name -> dataset``: the sources then follow each other, and are known.
    """

    def __init__(self, *args: Any, dataflex: RunSpec, **kwargs: Any) -> None:
        kwargs = self.named(args, kwargs)
        if isinstance(kwargs.get("train_dataset"), Mapping):
            kwargs["train_dataset"] = MixedSources(kwargs["train_dataset"])
        self._dataflex_visible: Any = None  # the rows without unused columns, while the train dataloader is made
        self._dataflex_step_rows: list[torch.Tensor | None] = []
        self._dataflex_micro_batch = -1
        self._dataflex_batch_rows: torch.Tensor | None = None
        self._dataflex_ends: NDArray[np.int64] | None = None  # of the sources
        self._dataflex_tables: dict[int, tuple[NDArray[Any], torch.Tensor]] = {}
        super().__init__(dataflex=dataflex, **kwargs)

    @property
    def batch_rows(self) -> torch.Tensor:
        """The rows of the micro-batch that is being trained on: (B,) int64 numbers in the train dataset, on the device.

        Raises:
            ComponentError: The batch holds no row numbers.
        """
        if self._dataflex_batch_rows is None:
            raise ComponentError("the batch holds no row numbers -> use a data collator that returns a dict")
        return self._dataflex_batch_rows

    def of_batch(self, table_N: NDArray[Any]) -> torch.Tensor:
        """Returns the entries of a table for the rows of the micro-batch: (B,), on the device.

        The table is sent to the device once and must not change.

        Args:
            table_N: (N,) numbers, one for each row of the train dataset.
        """
        return self._dataflex_on_device(table_N, self.batch_rows.device)[self.batch_rows]

    def of_sources(self, table_K: NDArray[Any]) -> torch.Tensor:
        """As :meth:`of_batch`, for a table with one number for each source of :attr:`source_names`."""
        return self._dataflex_on_device(table_K, self.batch_rows.device)[self.sources_of(self.batch_rows)]

    def _dataflex_on_device(self, table: NDArray[Any], device: torch.device) -> torch.Tensor:
        """Returns a table on a device. It is sent once: a copy to a device makes the host wait for it."""
        kept = self._dataflex_tables.get(id(table))
        if kept is None or kept[1].device != device:
            kept = (table, torch.from_numpy(np.ascontiguousarray(table)).to(device))  # the array keeps its id taken
            self._dataflex_tables[id(table)] = kept
        return kept[1]

    def get_train_dataloader(self) -> Any:
        """Returns the dataloader of the static run, with the number of each row."""
        self.keep_batch_size()
        rows: Any = self.train_dataset
        if rows is None:
            return super().get_train_dataloader()
        # The trainer underneath removes unused columns of a datasets.Dataset only, which the numbered rows are not.
        self._dataflex_visible = (
            self._remove_unused_columns(rows, description="training") if isinstance(rows, datasets.Dataset) else rows
        )
        with self._dataflex_training_on(NumberedRows(self._dataflex_visible)):
            try:
                return super().get_train_dataloader()
            finally:
                self._dataflex_visible = None

    @property
    def source_names(self) -> tuple[str, ...]:
        """The sources of the train dataset; empty where it does not say where each begins."""
        dataset: Any = self.train_dataset
        return dataset.names if isinstance(dataset, MixedSources) else ()

    def sources_of(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the number of each row's source in :attr:`source_names`: same shape, int64.

        Args:
            rows: Row numbers.
        """
        dataset: Any = self.train_dataset
        assert isinstance(dataset, MixedSources), "weighters that need sources are refused without them"
        if self._dataflex_ends is None:
            self._dataflex_ends = np.asarray(dataset.offsets[1:])
        return torch.searchsorted(self._dataflex_on_device(self._dataflex_ends, rows.device), rows, right=True)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Also takes the row numbers out of the batches, so that neither the weighter nor the model meets them."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        self._dataflex_step_rows = [
            batch.pop(ROW_NUMBERS, None) if isinstance(batch, MutableMapping) else None for batch in batches
        ]
        self._dataflex_micro_batch = -1
        return batches, num_items

    def next_micro_batch(self) -> None:
        """Moves on to the next micro-batch of the step; the first thing that its training step does."""
        self._dataflex_micro_batch += 1
        self._dataflex_batch_rows = self._dataflex_step_rows[self._dataflex_micro_batch]

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        collate = super()._get_collator_with_removed_columns(data_collator, description=description)
        return collate if self._dataflex_visible is None else NumberingCollator(self.tokens.counting(collate))

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Samples from the plain rows: samplers that group by length look into them."""
        if self._dataflex_visible is None:
            return super()._get_train_sampler(*args, **kwargs)
        with self._dataflex_training_on(self._dataflex_visible):
            return super()._get_train_sampler(*([self._dataflex_visible] if args else []), **kwargs)

    @contextmanager
    def _dataflex_training_on(self, dataset: Any) -> Iterator[None]:
        kept, self.train_dataset = self.train_dataset, dataset
        try:
            yield
        finally:
            self.train_dataset = kept
