"""Rows that carry their number in the train dataset from the dataset through the collator into the batch.

A weighter that looks something up for a row has to know which row it is. The number travels beside the row, not in it:
collators, which may refuse or pad keys they do not know, see the rows of a static run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from dataflex.rows.views import fetch

ROW_NUMBERS = "dataflex_row_numbers"
"""The key of a batch under which its (B,) row numbers stand until the trainer takes them out."""

DOCUMENT_LENGTHS = "seq_lengths"
"""The column in which TRL's packing notes the lengths of the documents of a row."""


def documents(row: Any) -> int:
    """Returns how many documents a row says it was packed of, as TRL's packing writes it down; else 1."""
    return len(row[DOCUMENT_LENGTHS]) if isinstance(row, Mapping) and row.get(DOCUMENT_LENGTHS) else 1


class NumberedRow(NamedTuple):
    """A row and where it stands in the train dataset."""

    row: Any
    number: int


class NumberedRows(Dataset[NumberedRow]):
    """The rows of a dataset with their numbers.

    Args:
        dataset: The train dataset.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> NumberedRow:
        return NumberedRow(self.dataset[number], number)

    def __getitems__(self, numbers: list[int]) -> list[NumberedRow]:
        rows = fetch(self.dataset, np.asarray(numbers, dtype=np.int64))
        return [NumberedRow(row, number) for row, number in zip(rows, numbers, strict=True)]


class NumberingCollator:
    """Collates the rows as ``collate`` does and puts their numbers into the batch: (B,).

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
        tokens, numbers = batch.get("input_ids"), [row.number for row in rows]
        if isinstance(tokens, torch.Tensor) and len(tokens) != len(rows):
            numbers = [number for number, count in zip(numbers, counts, strict=True) for _ in range(count)]
        batch[ROW_NUMBERS] = torch.tensor(numbers, dtype=torch.int64)
        return batch
