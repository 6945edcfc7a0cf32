"""Batches hold every row once, keep to the budget, and come out even over the ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataflex.scoring import gather_by_row, plan_batches, shard_batches
from hypothesis import given
from hypothesis import strategies as st

lengths = st.lists(st.integers(0, 300), max_size=80).map(lambda values: np.array(values, dtype=np.int64))
budgets = st.integers(1, 2000)


@given(lengths, budgets)
def test_every_row_is_in_exactly_one_batch(lengths_N, budget):
    batches = plan_batches(lengths_N, budget)
    rows = np.concatenate([np.empty(0, dtype=np.int64), *batches])
    assert sorted(rows) == list(range(len(lengths_N)))


@given(lengths, budgets)
def test_padded_tokens_keep_to_the_budget_unless_one_row_exceeds_it_alone(lengths_N, budget):
    for rows in plan_batches(lengths_N, budget):
        assert len(rows) == 1 or len(rows) * lengths_N[rows].max() <= budget


@given(lengths, budgets)
def test_longest_rows_come_first_and_equal_ones_in_row_order(lengths_N, budget):
    rows = np.concatenate([np.empty(0, dtype=np.int64), *plan_batches(lengths_N, budget)])
    keys = [(-lengths_N[row], row) for row in rows]
    assert keys == sorted(keys)


@given(lengths, budgets)
def test_a_batch_takes_as_many_rows_as_fit(lengths_N, budget):
    batches = plan_batches(lengths_N, budget)
    for rows in batches[:-1]:
        assert (len(rows) + 1) * max(1, lengths_N[rows[0]]) > budget


@given(lengths, budgets, st.integers(1, 5))
def test_ranks_make_the_same_number_of_forwards_and_share_no_result(lengths_N, budget, world_size):
    batches = plan_batches(lengths_N, budget)
    shards = [shard_batches(batches, rank, world_size) for rank in range(world_size)]
    assert {len(shard) for shard in shards} == {-(-len(batches) // world_size)}
    kept = [row for shard in shards for batch in shard if not batch.repeated for row in batch.rows]
    assert sorted(kept) == list(range(len(lengths_N)))


@given(lengths, budgets, st.integers(1, 5))
def test_a_row_has_the_same_company_whatever_the_number_of_ranks(lengths_N, budget, world_size):
    batches = plan_batches(lengths_N, budget)
    companies = {tuple(rows) for rows in batches}
    for rank in range(world_size):
        assert {tuple(batch.rows) for batch in shard_batches(batches, rank, world_size)} <= companies


def test_only_the_last_round_repeats_a_batch():
    batches = [np.array([i]) for i in range(4)]
    assert [batch.repeated for batch in shard_batches(batches, 0, 3)] == [False, False]
    assert [batch.repeated for batch in shard_batches(batches, 1, 3)] == [False, True]
    assert [batch.repeated for batch in shard_batches(batches, 2, 3)] == [False, True]


def test_gather_puts_values_at_their_rows_and_keeps_nan_and_infinity():
    found = gather_by_row(np.array([2, 0, 1]), torch.tensor([5.0, torch.nan, torch.inf]), 3)
    np.testing.assert_array_equal(found, np.array([np.nan, np.inf, 5.0], dtype=np.float32))


def test_gather_takes_values_of_any_shape():
    found = gather_by_row(np.array([1, 0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 2)
    np.testing.assert_array_equal(found, [[3.0, 4.0], [1.0, 2.0]])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([0], r"1 of 2 rows were not .* once .*; row 1 was computed 0 times"),
        ([0, 1, 1], "row 1 was computed 2 times"),
    ],
)
def test_gather_refuses_a_row_that_is_missing_or_comes_twice(rows, said):
    with pytest.raises(RuntimeError, match=said):
        gather_by_row(np.array(rows), torch.ones(len(rows)), 2)
