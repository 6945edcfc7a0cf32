"""Data of any size: what an update costs depends on the rows that it looks at, and whole columns are never lists.

Letters: N rows.
"""

from __future__ import annotations

import importlib
import time
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.kinds import MIXER, SELECTOR
from dataflex.core.permutation import RowOrder
from dataflex.discovery.component_classes import find
from dataflex.discovery.construct import constructor_parameters
from dataflex.rows.columns import first_labelled_rows, labelled_rows, number_column
from dataflex.rows.digest import rows_digest
from dataflex.rows.lengths import row_lengths
from dataflex.rows.views import MixedSources, PlannedRows
from dataflex.run import score_file as scores_file
from dataflex.run.row_file import values_digest
from dataflex.scoring.passes.fingerprint import dataset_digest
from dataflex.testing import TokenRows, tiny_model, tiny_tokenizer
from dataflex_selectors.parts.ranking import first_places, places_between
from every_component import installed, made
from torch.utils.data import ConcatDataset, Subset

HUGE = 10**8
MB = 2**20
LOOK_AT_ALL = {  # and why; benchmarks/large_data.py says what that costs
    "cluster_less": "clusters are those of all rows",
    "deita": "the vectors and scores of all rows",
    "coincide": "clusters are those of all rows",
    "delta_loss": "the loss of every row is compared with an earlier one",
    "infobatch": "the mean loss of all rows, and a pass over them",
    "ifd": "the rows with the highest scores of all",
    "dsir": "the n-grams of all rows",
    "loss": "a bucket is a share of all losses",
    "near": "the nearest rows of all",
    "perplexity": "a band is a share of all rows",
    "reward_spread": "the belief of every prompt is compared",
    "rho_loss": "the irreducible loss of every row is given",
    "scores": "the score of every row is given",
    "semdedup": "copies among all rows",
    "tsds": "the density of all rows",
}


class Lazy:
    """Rows that are made when they are asked for; nobody may ask for all of them."""

    def __init__(self, size: int = HUGE, most: int = 10_000) -> None:
        self.size, self.left = size, most

    def __len__(self) -> int:
        return self.size

    def __iter__(self):
        raise AssertionError("every row is gone through")

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        assert 0 <= row < self.size
        self.left -= 1
        assert self.left >= 0, "too many rows are read"
        ids = [5 + (row * 7 + place) % 97 for place in range(6)]
        return {"input_ids": ids, "attention_mask": [1] * 6, "labels": [-100, *ids[1:]]}


def peak(do) -> float:
    """Returns the MB that ``do`` takes at most."""
    tracemalloc.start()
    try:
        do()
        return tracemalloc.get_traced_memory()[1] / MB
    finally:
        tracemalloc.stop()


def build(name: str, **params: Any) -> Any:
    return made(SELECTOR, name, params, dataset=Lazy(), eval_dataset=TokenRows(3, seed=9))


def few() -> list[str]:
    """The selectors that need not look at all rows, some of them where their parameter ``candidates`` says so."""
    return [name for name in installed(SELECTOR) if name not in LOOK_AT_ALL]


def params_of(name: str) -> dict[str, Any]:
    return {"candidates": 12} if "candidates" in constructor_parameters(find(SELECTOR, name))[0] else {}


@pytest.mark.parametrize("name", few())
def test_an_update_over_a_hundred_million_rows_takes_the_memory_of_the_rows_it_looks_at(name):
    model = tiny_model(layers=1)
    params = params_of(name) | ({"samples": 1, "max_new_tokens": 1} if name == "nice" else {})
    build(name, **params)  # imports what it needs

    def updates():
        selector = build(name, **params)
        selector.check_run(model, RunAhead(2, 3, 4))
        selector.warmup(4, replacement=False)
        for update in range(2):
            context = UpdateContext(update, 2, 1 + update, 3, 1e-3, None)
            found = selector.select(model=model, step_id=1 + update, num_samples=4, context=context)
            rows = np.asarray(getattr(found, "indices", found))
            assert len(np.unique(rows)) == 4
            assert rows.max() > HUGE // 1000 or name == "custom"
        selector.state_dict()

    assert peak(updates) < 32


@pytest.mark.parametrize("name", [name for name in installed(SELECTOR) if name in LOOK_AT_ALL])
def test_who_looks_at_all_rows_is_known_and_its_warm_up_does_not(name):
    selector = find(SELECTOR, name).__new__(find(SELECTOR, name))
    selector.dataset, selector.seed = Lazy(most=0), 1
    assert peak(lambda: selector.warmup(512, replacement=False)) < 1


def test_random_draws_512_of_a_hundred_million_rows_in_a_moment():
    selector = build("random")
    selector.warmup(100)
    started = time.process_time()
    assert peak(lambda: selector.select(None, 1, 512)) < 1
    assert time.process_time() - started < 0.5


def passes_in_full(size: int, seed: int, counts: list[int]) -> list[np.ndarray]:
    """What the random selector gives, by whole permutations: rows of a stretch that crosses into a pass come last."""
    order, cursor, late, given = RowOrder(size, seed, "warmup"), 0, np.empty(0, dtype=np.int64), []
    for count in counts:
        taken = np.empty(0, dtype=np.int64)
        while len(taken) < count:
            number, offset = divmod(cursor, size)
            late = taken if offset == 0 else late
            one_pass = order.take(number * size, size)
            again = np.isin(one_pass, late)
            part = np.concatenate([one_pass[~again], one_pass[again]])[offset : offset + count - len(taken)]
            cursor += len(part)
            taken = np.concatenate([taken, part])
        given.append(taken)
    return given


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1001])
def test_random_gives_what_whole_permutations_gave(size):
    rng = np.random.default_rng(size)
    counts = [int(count) for count in rng.integers(1, size + 1, 12)]
    selector = made(SELECTOR, "random", dataset=Lazy(size))
    found = [selector.select(None, 1, count) for count in counts]
    for own, slow in zip(found, passes_in_full(size, 7, counts), strict=True):
        np.testing.assert_array_equal(own, slow)


@pytest.mark.parametrize("size", [1, 2, 3, 100, 4097])
def test_an_order_says_where_a_row_comes(size):
    order = RowOrder(size, "key")
    for epoch in (0, 5):
        rows = order.take(epoch * size, size)
        np.testing.assert_array_equal(order.places(rows, epoch), np.arange(size))
        np.testing.assert_array_equal(order.at(epoch * size + np.arange(size)[::-1]), rows[::-1])


def test_the_first_places_are_those_of_a_sort_with_all_ties():
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = int(rng.integers(1, 30))
        keys, ties = rng.integers(0, 6, size).astype(float), rng.integers(0, 3, size)
        count = int(rng.integers(0, size + 3))
        np.testing.assert_array_equal(first_places(count, keys), np.argsort(keys, kind="stable")[:count])
        np.testing.assert_array_equal(first_places(count, keys, ties), np.lexsort((ties, keys))[:count])
        first = int(rng.integers(0, size))
        last = int(rng.integers(first + 1, size + 1))
        expected = np.sort(np.argsort(keys, kind="stable")[first:last])
        np.testing.assert_array_equal(places_between(first, last, keys), expected)


def tokens(labels: list[Any], kind: Any = None) -> datasets.Dataset:
    kind = pa.list_(pa.int64()) if kind is None else kind
    ids = [None if own is None else [3] * len(own) for own in labels]
    return datasets.Dataset(pa.table({"input_ids": pa.array(ids, kind), "labels": pa.array(labels, kind)}))


LABELS = [[-100, 4], [4, -100], [], [-100, -100], [5], [-100, None], [1, 2, 3], [-100, -100, 9]]
STORED = tokens(LABELS)
VIEWS = {
    "stored": STORED,
    "large lists": tokens(LABELS, pa.large_list(pa.int32())),
    "lists of one length": tokens([[-100, 4], [4, -100], [6, 6]], pa.list_(pa.int64(), 2)),
    "a null row": tokens([[-100, 4], None, [1, 2]]),
    "selected": STORED.select([7, 0, 1, 0]),
    "shuffled": STORED.shuffle(seed=1),
    "put together": datasets.concatenate_datasets([STORED, STORED.select([3, 6])]),
    "planned": PlannedRows(STORED, np.array([6, 6, 1])),
    "a subset": Subset(STORED, [3, 0]),
    "a subset of planned rows": Subset(PlannedRows(STORED, np.array([6, 3, 0])), [2, 1]),
    "joined": ConcatDataset([STORED, STORED]),
    "sources": MixedSources({"a": STORED, "b": PlannedRows(STORED, np.array([0, 1]))}),
    "without labels": STORED.remove_columns("labels"),
    "no rows": STORED.select([]),
    "made when read": [dict(row) for row in STORED],
}


def learnt_from(row: dict[str, Any]) -> bool:
    labels = row.get("labels")
    return bool(row["input_ids"]) and (not labels or any(label != -100 for label in labels[1:]))


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_labels_and_lengths_are_those_of_a_look_at_each_row(view):
    rows = [view[row] for row in range(len(view))]
    expected = [number for number, row in enumerate(rows) if learnt_from(row)]
    assert labelled_rows(view).tolist() == expected
    assert first_labelled_rows(view, 2).tolist() == expected[:2]
    if all(row["input_ids"] is not None for row in rows):
        lengths = [len(row["input_ids"]) for row in rows]
        assert row_lengths(view).tolist() == lengths
        assert row_lengths(view, np.arange(len(view))[::-1]).tolist() == lengths[::-1]


def test_the_lengths_of_a_few_rows_are_looked_up_one_by_one():
    parts = [tokens([[1] * (1 + (row * part) % 5) for row in range(40)]) for part in (1, 2, 3)]
    whole = datasets.concatenate_datasets(parts)
    wanted = np.array([119, 0, 41, 40])
    assert row_lengths(whole, wanted).tolist() == [len(whole[int(row)]["input_ids"]) for row in wanted]
    shuffled = whole.shuffle(seed=2)
    assert row_lengths(shuffled, wanted).tolist() == [len(shuffled[int(row)]["input_ids"]) for row in wanted]


def test_only_as_many_rows_are_looked_at_as_are_wanted():
    assert first_labelled_rows(Lazy(most=16), 3).tolist() == [0, 1, 2]


def test_a_column_of_numbers_is_one_array():
    plain = datasets.Dataset(pa.table({"il": pa.array([1.5, None, 3.0]), "few": pa.array([1, 2, 3], pa.int8())}))
    np.testing.assert_array_equal(number_column(plain, "il"), [1.5, np.nan, 3.0])
    np.testing.assert_array_equal(number_column(PlannedRows(plain, np.array([2, 0])), "few"), [3, 1])
    np.testing.assert_array_equal(
        number_column(MixedSources({"a": plain, "b": plain.select([0])}), "few"), [1, 2, 3, 1]
    )
    assert number_column(plain, "none") is None
    lists = datasets.Dataset.from_dict({"il": [[1.0], []]})
    np.testing.assert_array_equal(number_column(lists, "il"), [1.0, np.nan])
    with pytest.raises(ValueError, match="something else than one number per row"):
        number_column(datasets.Dataset.from_dict({"il": ["a"]}), "il")


CONTENT = {
    "ids": pa.array([[1, 2], None, [], [3]], pa.list_(pa.int32())),
    "deep": pa.array([[[1.0], []], [[2.5]], None, []], pa.list_(pa.list_(pa.float32()))),
    "text": pa.array(["ab", "c", None, ""]),
    "bytes": pa.array([b"ab", b"", b"c", None], pa.large_binary()),
    "flag": pa.array([True, None, False, True]),
    "number": pa.array([1, 0, None, 2**62]),
    "pair": pa.array([{"x": 1, "y": "a"}, None, {"x": None, "y": "b"}, {"x": 3, "y": None}]),
    "two": pa.array([[1, 2], [3, 4], None, [5, 6]], pa.list_(pa.int16(), 2)),
    "word": pa.array(["a", "b", "a", None]).dictionary_encode(),
    "day": pa.array([1, None, 3, 4], pa.date32()),
}


def stored(**columns: Any) -> datasets.Dataset:
    return datasets.Dataset(pa.table(columns))


@pytest.mark.parametrize("column", CONTENT)
def test_a_fingerprint_is_that_of_the_content_however_it_is_stored(column):
    whole = stored(a=CONTENT[column])
    parts = datasets.concatenate_datasets([whole.select(range(1)), whole.select(range(1, 4))])
    assert (
        dataset_digest(whole) == dataset_digest(parts) == dataset_digest(stored(a=CONTENT[column].take([0, 1, 2, 3])))
    )
    others = [stored(a=CONTENT[column].take(order)) for order in ([1, 0, 2, 3], [0, 1, 3, 2], [0, 1, 2])]
    assert len({dataset_digest(dataset) for dataset in (whole, *others)}) == 4
    assert dataset_digest(whole) != dataset_digest(stored(b=CONTENT[column]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["ab", "c"], ["a", "bc"]),
        ([[1], [2, 3]], [[1, 2], [3]]),
        ([[1], None], [[1], []]),
        ([0, 1], [None, 1]),
        (["", "a"], [None, "a"]),
        ([[[1], []]], [[[], [1]]]),
        ([True, False], [1, 0]),
    ],
)
def test_a_fingerprint_tells_apart_what_has_the_same_bytes(one, other):
    assert dataset_digest(stored(a=pa.array(one))) != dataset_digest(stored(a=pa.array(other)))


def test_whole_columns_are_read_at_the_speed_of_arrays():
    size = 400_000
    ids = pa.ListArray.from_arrays(np.arange(0, 4 * size + 1, 4, dtype=np.int32), np.arange(4 * size) % 97)
    rows = stored(input_ids=ids, labels=ids, il=pa.array(np.arange(size, dtype=np.float64)))
    started = time.process_time()
    assert len(labelled_rows(rows)) == size
    assert len(dataset_digest(rows)) == 32
    assert number_column(rows, "il")[-1] == size - 1
    assert row_lengths(rows).sum() == 4 * size
    assert rows_digest(rows)
    assert time.process_time() - started < 3  # as lists of Python numbers it is ten times that


def test_a_file_of_scores_is_written_a_group_of_rows_at_a_time(tmp_path, monkeypatch):
    rows = datasets.Dataset.from_list([dict(row) for row in TokenRows(50)])
    scores = np.where(np.arange(50) % 7 == 0, np.nan, np.arange(50.0))
    scores_file.write_scores(tmp_path / "one.parquet", scores, rows, tiny_tokenizer(), {"step": 3})
    monkeypatch.setattr(scores_file, "_GROUP", 16)
    scores_file.write_scores(tmp_path / "many.parquet", scores, rows, tiny_tokenizer(), {"step": 3})
    assert pq.ParquetFile(tmp_path / "many.parquet").num_row_groups == 4
    one, many = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("one", "many"))
    assert one.equals(many, check_metadata=True)
    assert values_digest(many.column("score").to_numpy()) == values_digest(scores)


@pytest.mark.parametrize("kind", [SELECTOR, MIXER], ids=lambda kind: kind.name)
def test_the_benchmark_walks_every_installed_component(kind, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    large_data = importlib.import_module("benchmarks.large_data")
    with large_data.without_model():
        rows = large_data.rows_on_disk(tmp_path, 300)
        np.save(tmp_path / "scores.npy", np.arange(300.0))
        monkeypatch.setitem(large_data.PARAMS, "scores", {"file": str(tmp_path / "scores.npy")})
        given = large_data.runtime(rows, tmp_path)
        refused = {name for name in installed(kind) if large_data.walked(kind, name, {}, given, 16).startswith("-")}
    assert refused <= set(large_data.NOT_WALKED)
