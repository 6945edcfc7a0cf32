"""Which rows of the train dataset the present micro-batch holds: their numbers, weights and sources, on the device.

Numbers and weights travel in the batches (:mod:`dataflex.rows.row_numbers`) and are taken out of all batches of an
optimizer step before it begins, so that neither the model nor a component meets them.

Letters: B rows of the micro-batch (or S documents, where a collator flattens packed rows into one), N rows of the train
dataset, K sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.errors import ComponentError
from dataflex.rows.row_numbers import ROW_NUMBERS, ROW_WEIGHTS
from dataflex.rows.views import MixedSources


class BatchRows:
    """The rows of the micro-batches of one optimizer step, of this rank.

    Args:
        dataset: Returns the train dataset.
        texts: Whether a row is a text, of which several may be put into one; a pair of answers is not.

    Attributes:
        of_step: For each micro-batch of the step, (B,) int64 numbers of its rows; None where it does not hold them.
        flattened: For each, whether its rows were put one after the other into one: it has numbers of documents then.
        weighed: Whether rows of the step have weights.
        micro_batch: The present micro-batch of the step, from 0; -1 before the first.
    """

    def __init__(self, dataset: Callable[[], Any], texts: bool = True) -> None:
        self._dataset, self._texts = dataset, texts
        self.of_step: list[torch.Tensor | None] = []
        self.flattened: list[bool] = []
        self.weighed = False
        self._weights: list[torch.Tensor | None] = []
        self._source_weights: torch.Tensor | None = None  # (K,) float32; None where a row of each counts the same
        self.micro_batch = -1
        self._ends: NDArray[np.int64] | None = None  # of the sources
        self._tables: dict[int, tuple[NDArray[Any], torch.Tensor]] = {}

    def take(self, batches: Sequence[Any]) -> None:
        """Takes numbers and weights out of the batches of the step that begins."""
        self.of_step = [_taken(batch, ROW_NUMBERS) for batch in batches]
        self._weights = [_taken(batch, ROW_WEIGHTS) for batch in batches]
        self.flattened = [
            self._texts and _flattened(batch, rows) for batch, rows in zip(batches, self.of_step, strict=True)
        ]
        self.weighed = any(weights is not None for weights in self._weights)
        self.micro_batch = -1

    def next(self) -> None:
        """Moves on to the next micro-batch of the step; the first thing that its training step does."""
        self.micro_batch += 1

    @property
    def rows(self) -> torch.Tensor:
        """(B,) int64 numbers of the rows of the present micro-batch, on the device.

        Raises:
            ComponentError: The batch holds no row numbers.
        """
        found = self.of_step[self.micro_batch] if self.micro_batch >= 0 else None
        return _known(found)

    @property
    def weights(self) -> torch.Tensor | None:
        """(B,) float32 weights of these rows: a selector's, times those of their sources; None where there are none."""
        own_B = self._weights[self.micro_batch]
        if self._source_weights is None:
            return own_B
        rows_B = self.rows
        if self._source_weights.device != rows_B.device:  # once for each set of weights
            self._source_weights = self._source_weights.to(rows_B.device)
        weights_B = self._source_weights[self.sources_of(rows_B)]
        return weights_B if own_B is None else own_B.to(rows_B.device) * weights_B

    def weigh_sources(self, weights_K: NDArray[np.float64]) -> None:
        """Sets what a row of each source counts from now on, beside what a selector says of it.

        Args:
            weights_K: (K,) weights. Where all are 1, rows have none.
        """
        new = torch.from_numpy(weights_K.astype(np.float32))
        before = self._source_weights
        if before is None or not torch.equal(before.cpu(), new):
            self._source_weights = None if bool((new == 1).all()) else new

    @property
    def source_names(self) -> tuple[str, ...]:
        """The sources of the train dataset; empty where it does not say where each begins."""
        dataset = self._dataset()
        return dataset.names if isinstance(dataset, MixedSources) else ()

    def sources_on_host(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """As :meth:`sources_of`, for numbers that have left the device."""
        dataset = self._dataset()
        assert isinstance(dataset, MixedSources), "what needs sources is refused without them"
        return dataset.sources_of(rows)

    def sources_of_step(self) -> list[torch.Tensor]:
        """Returns the number of each row's source, micro-batch by micro-batch of the step: (B,) int64 each."""
        return [self.sources_of(_known(rows_B)) for rows_B in self.of_step]

    def sources_of(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the number of each row's source in :attr:`source_names`: same shape, int64.

        Args:
            rows: Row numbers.
        """
        if self._ends is None:
            dataset = self._dataset()
            assert isinstance(dataset, MixedSources), "what needs sources is refused without them"
            self._ends = np.asarray(dataset.offsets[1:])
        return torch.searchsorted(self._on_device(self._ends, rows.device), rows, right=True)

    def entries(self, table_N: NDArray[Any], rows: torch.Tensor) -> torch.Tensor:
        """Returns the entries of a table for some rows, on their device. The table must not change.

        Args:
            table_N: (N,) numbers, one for each row of the train dataset.
            rows: Row numbers.
        """
        return self._on_device(table_N, rows.device)[rows]

    def source_entries(self, table_K: NDArray[Any], rows: torch.Tensor) -> torch.Tensor:
        """As :meth:`entries`, for a table with one number for each source."""
        return self._on_device(table_K, rows.device)[self.sources_of(rows)]

    def _on_device(self, table: NDArray[Any], device: torch.device) -> torch.Tensor:
        """Returns a table on a device. It is sent once: a copy to a device makes the host wait for it."""
        kept = self._tables.get(id(table))
        if kept is None or kept[1].device != device:
            kept = (table, torch.from_numpy(np.ascontiguousarray(table)).to(device))  # the array keeps its id taken
            self._tables[id(table)] = kept
        return kept[1]


def _taken(batch: Any, key: str) -> torch.Tensor | None:
    return batch.pop(key, None) if isinstance(batch, MutableMapping) else None


def _flattened(batch: Any, rows: torch.Tensor | None) -> bool:
    tokens = batch.get("input_ids") if isinstance(batch, Mapping) and rows is not None else None
    return isinstance(tokens, torch.Tensor) and rows is not None and len(tokens) != len(rows)


def _known(rows_B: torch.Tensor | None) -> torch.Tensor:
    if rows_B is None:
        raise ComponentError("the batch holds no row numbers -> use a data collator that returns a dict")
    return rows_B
