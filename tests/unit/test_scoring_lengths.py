"""Lengths from every kind of dataset, and without reading rows where the dataset can say them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pytest
from dataflex.rows.views import MixedSources, PlannedRows
from dataflex.scoring import row_lengths
from dataflex.testing import TokenRows
from torch.utils.data import ConcatDataset, Dataset, Subset

SIZES = [3, 9, 5, 4, 7]


def stored(sizes: list[int] = SIZES) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"input_ids": [list(range(size)) for size in sizes]})


def tokens(sizes: list[int] = SIZES) -> TokenRows:
    return TokenRows(len(sizes), lengths=sizes)


VIEWS: dict[str, tuple[Callable[[], Any], list[int]]] = {
    "list": (lambda: [{"input_ids": [0] * size} for size in SIZES], SIZES),
    "map-style": (tokens, SIZES),
    "arrow": (stored, SIZES),
    "arrow selected": (lambda: stored().select([4, 0, 0]), [7, 3, 3]),
    "arrow sliced": (lambda: stored().select(range(1, 4)), [9, 5, 4]),
    "arrow selected twice": (lambda: stored().select([4, 0, 2]).select([2, 0]), [5, 7]),
    "arrow concatenated": (lambda: datasets.concatenate_datasets([stored(), stored([1, 2])]), [*SIZES, 1, 2]),
    "arrow with an empty row": (lambda: stored([0, 2]), [0, 2]),
    "subset": (lambda: Subset(tokens(), [3, 1]), [4, 9]),
    "subset of arrow": (lambda: Subset(stored().select([4, 0, 2]), [2, 0]), [5, 7]),
    "concatenation": (lambda: ConcatDataset([tokens(), stored([1, 2])]), [*SIZES, 1, 2]),
    "planned rows": (lambda: PlannedRows(stored(), np.array([1, 1, 0])), [9, 9, 3]),
    "mixed sources": (lambda: MixedSources({"a": tokens(), "b": stored([1, 2])}), [*SIZES, 1, 2]),
}


@pytest.mark.parametrize("view", VIEWS)
def test_lengths_are_those_of_the_rows(view):
    make, expected = VIEWS[view]
    dataset = make()
    found = row_lengths(dataset)
    assert found.dtype == np.int64
    assert found.tolist() == expected == [len(dataset[i]["input_ids"]) for i in range(len(dataset))]


def test_shuffled_arrow_dataset_gives_the_shuffled_lengths():
    dataset = stored(list(range(1, 40))).shuffle(seed=3)
    assert row_lengths(dataset).tolist() == [len(row["input_ids"]) for row in dataset]


def test_a_transform_that_makes_the_tokens_is_followed_not_the_stored_column():
    dataset = stored()
    dataset.set_transform(lambda batch: {"input_ids": [ids * 2 for ids in batch["input_ids"]]})
    assert row_lengths(dataset).tolist() == [2 * size for size in SIZES]


def test_a_dataset_that_knows_its_lengths_is_not_read():
    class Knowing(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            raise AssertionError("a row was read")

        def row_lengths(self):
            return np.array([5, 6])

    assert row_lengths(Knowing()).tolist() == [5, 6]


def test_an_arrow_dataset_is_not_read(monkeypatch):
    monkeypatch.setattr(datasets.Dataset, "__getitem__", lambda *_: pytest.fail("a row was read"))
    assert row_lengths(stored().select([2, 1])).tolist() == [5, 9]


def test_lengths_of_nothing_are_empty():
    assert row_lengths(datasets.Dataset.from_dict({"input_ids": []})).tolist() == []
    assert row_lengths([]).tolist() == []
