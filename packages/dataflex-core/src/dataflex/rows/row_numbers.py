"""Rows that carry their number in the train dataset from the dataset through the collator into the batch.

What weighs a loss, or notes it, has to know which rows a batch holds. The number travels beside the row, not in it:
collators, which may refuse or pad keys they do not know, see the rows of a static run. Where a selector gave its rows
weights, a row's weight travels with its number: the same row may come twice, with another weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from dataflex.rows.views import fetch

ROW_NUMBERS = "dataflex_row_numbers"
"""The key of a batch under which its (B,) row numbers stand until the trainer takes them out."""

ROW_WEIGHTS = "dataflex_row_weights"
"""The key of a batch under which the (B,) float32 weights of its rows stand; absent where there are none."""

DOCUMENT_LENGTHS = "seq_lengths"
"""The column in which TRL's packing notes the lengths of the documents of a row."""


def documents(row: Any) -> int:
    """Returns how many documents a row says it was packed of, as TRL's packing writes it down; else 1."""
    return len(row[DOCUMENT_LENGTHS]) if isinstance(row, Mapping) and row.get(DOCUMENT_LENGTHS) else 1


class NumberedRow(NamedTuple):
    """A row, where it stands in the train dataset, and its weight where it has one."""

    row: Any
    number: int
    weight: float | None = None


class NumberedRows(Dataset[NumberedRow]):
    """The rows of a dataset with their numbers.

    Args:
        dataset: The rows: the train dataset, or those of it that were planned.
        numbers: (S,) which row of the train dataset each of them is; None: the n-th is row n.
        weights: (S,) float32 their weights, or None.
    """

    def __init__(
        self, dataset: Any, numbers: NDArray[np.int64] | None = None, weights: NDArray[np.float32] | None = None
    ) -> None:
        self.dataset = dataset
        self._numbers = numbers
        self._weights = weights

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: int) -> NumberedRow:
        return self._numbered(self.dataset[place], place)

    def __getitems__(self, places: list[int]) -> list[NumberedRow]:
        rows = fetch(self.dataset, np.asarray(places, dtype=np.int64))
        return [self._numbered(row, place) for row, place in zip(rows, places, strict=True)]

    def _numbered(self, row: Any, place: int) -> NumberedRow:
        number = place if self._numbers is None else int(self._numbers[place])
        return NumberedRow(row, number, None if self._weights is None else float(self._weights[place]))


class NumberingCollator:
    """Collates the rows as ``collate`` does and puts their numbers, and weights, into the batch: (B,).

    Where the collator flattens packed rows into one, there is a number for each of their documents, (S,).

    Args:
        collate: The collator of the static run; it gets plain rows.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, rows: list[NumberedRow]) -> Any:
        """Returns the batch of the rows."""
        counts = [documents(row.row) for row in rows]  # now: a collator may take keys out of a row
        batch = self.collate([row.row for row in rows])
        tokens, numbered = batch.get("input_ids"), rows
        if isinstance(tokens, torch.Tensor) and len(tokens) != len(rows):
            numbered = [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
        batch[ROW_NUMBERS] = torch.tensor([row.number for row in numbered], dtype=torch.int64)
        if rows and rows[0].weight is not None:
            batch[ROW_WEIGHTS] = torch.tensor([row.weight for row in numbered], dtype=torch.float32)
        return batch


class NumberingRows:
    """Puts each row's number into the row, where a batch is a list of rows: until the trainer takes it out.

    Args:
        collate: The collator of the static run, which returns a list of mappings; it gets plain rows.
        columns: What a row has in any case: None where its source has no such column, as in rows that
            ``datasets.concatenate_datasets`` has put together. Who reads a batch goes by the columns of its first row.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], columns: Sequence[str] = ()) -> None:
        self.collate, self._blank = collate, dict.fromkeys(columns)

    def __call__(self, rows: list[NumberedRow]) -> list[dict[str, Any]]:
        """Returns the batch: a copy of each row, as a dataset may give the same one for each of its answers."""
        batch = self.collate([row.row for row in rows])
        return [{**self._blank, **each, ROW_NUMBERS: row.number} for each, row in zip(batch, rows, strict=True)]
