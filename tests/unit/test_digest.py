"""The digest by which a file or a checkpoint is known to belong to a dataset."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from dataflex.rows import digest
from dataflex.rows.digest import rows_digest
from dataflex.rows.views import MixedSources, PlannedRows
from torch.utils.data import Subset

ROWS = [{"input_ids": [i, i + 1], "labels": [-100, i]} for i in range(20)]


def _changed(rows: list[dict[str, Any]], place: int) -> list[dict[str, Any]]:
    return [row | {"labels": [-100, -100]} if i == place else row for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    "other",
    [ROWS[:-1], ROWS[::-1], _changed(ROWS, 7), [{"input_ids": row["input_ids"]} for row in ROWS]],
    ids=["fewer", "order", "labels", "columns"],
)
def test_digest_tells_datasets_apart_that_differ_in_number_order_or_content(other: list[dict[str, Any]]) -> None:
    assert rows_digest(other) != rows_digest(ROWS)


def test_digest_is_of_the_rows_and_not_of_what_holds_them() -> None:
    stored = datasets.Dataset.from_list(ROWS)
    tensors = [{key: torch.tensor(value) for key, value in row.items()} for row in ROWS]
    views = [
        stored,
        tensors,
        Subset(ROWS, range(20)),  # type: ignore[arg-type]  # a list will do
        PlannedRows(ROWS, np.arange(20)),
        MixedSources({"a": ROWS[:5], "b": ROWS[5:]}),
    ]
    assert {rows_digest(view) for view in views} == {rows_digest(ROWS)}


def test_digest_of_a_large_dataset_reads_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "SAMPLE", 4)
    read: list[int] = []

    class Rows:
        def __len__(self) -> int:
            return 10**8

        def __getitem__(self, row: int) -> dict[str, Any]:
            read.append(row)
            return {"input_ids": [row]}

    assert rows_digest(Rows()) == rows_digest(Rows())
    assert len(read) == 8
    assert read == sorted(read[:4]) * 2
    assert len(set(read)) == 4


def test_digest_is_the_same_in_another_process_whatever_objects_the_rows_hold() -> None:
    program = (
        "from dataflex.rows.digest import rows_digest\n"
        "class Image: ...\n"
        "print(rows_digest([{'input_ids': [1], 'images': [Image()], 'text': 'x', 'n': None}]))"
    )
    found = {subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(found) == 1


def test_numbers_count_and_not_what_holds_them() -> None:
    def of(value: Any) -> str:
        return rows_digest([{"x": value}])

    whole = [[1, 2], [3, 4]]
    held = [whole, np.array(whole, np.int32), torch.tensor(whole), torch.tensor(whole, dtype=torch.uint8)]
    assert len({of(value) for value in held}) == 1
    real = [0.5, -2.0]
    kept = [real, np.array(real, np.float16), torch.tensor(real), torch.tensor(real, dtype=torch.bfloat16)]
    assert len({of(value) for value in kept}) == 1
    ragged = [[1], [2, 3]]
    assert of(ragged) == of([torch.tensor(part) for part in ragged])
    assert of(3) == of(torch.tensor(3)) == of(np.int8(3))
    assert of([]) == of(torch.tensor([], dtype=torch.int64))
    others = [
        [1, 2, 3, 4],
        [[1, 2, 3, 4]],
        [1, 2, 3, None],
        ["1", "2"],
        ["12"],
        "12",
        12,
        2**70,
        2**70 + 1,
        [],
        [[1], 2],
    ]
    assert len({of(value) for value in others}) == len(others)


def test_a_picture_is_known_by_its_pixels_and_its_shape() -> None:
    Image = pytest.importorskip("PIL.Image")
    black, white = (Image.new("L", (4, 2), color) for color in (0, 255))
    turned = Image.new("L", (2, 4), 0)
    digests = [rows_digest([{"images": [image]}]) for image in (black, white, turned, Image.new("L", (4, 2), 0))]
    assert digests[0] == digests[3]
    assert len(set(digests)) == 3


def test_few_rows_are_held_at_a_time_and_no_value_becomes_python_objects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    class Pictures:
        def __len__(self) -> int:
            return 200

        def __getitem__(self, row: int) -> dict[str, Any]:
            return {"pixel_values": torch.full((3, 8, 8), float(row))}

        def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
            asked.append(len(rows))
            return [self[row] for row in rows]

    monkeypatch.setattr(torch.Tensor, "tolist", None)
    rows_digest(Pictures())
    assert max(asked) <= digest.BLOCK
    assert sum(asked) == 200
