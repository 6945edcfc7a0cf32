import numpy as np
import pytest
from dataflex.core.permutation import RowOrder
from hypothesis import given
from hypothesis import strategies as st


@given(size=st.integers(1, 300), start=st.integers(0, 1000), count=st.integers(0, 700))
def test_any_stretch_is_the_same_as_cut_from_the_whole(size, start, count):
    order = RowOrder(size, 7, "x")
    whole = order.take(0, start + count)
    assert (order.take(start, count) == whole[start:]).all()


@given(size=st.integers(1, 300), epoch=st.integers(0, 3))
def test_every_epoch_is_a_permutation(size, epoch):
    assert sorted(RowOrder(size, 7).take(epoch * size, size)) == list(range(size))


def test_epochs_and_keys_give_different_orders():
    order = RowOrder(100, 1, "a")
    assert (order.take(0, 100) != order.take(100, 100)).any()
    assert (order.take(0, 100) != RowOrder(100, 2, "a").take(0, 100)).any()
    assert (order.take(0, 100) != RowOrder(100, 1, "b").take(0, 100)).any()


@pytest.mark.parametrize("size", [5, 37])
def test_every_row_is_equally_likely_at_every_place(size):
    keys = 1500
    seen = np.zeros((size, size))
    for key in range(keys):
        seen[np.arange(size), RowOrder(size, key).take(0, size)] += 1
    expected = keys / size
    chi2 = ((seen - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


def test_neighbours_are_uncorrelated():
    rows = RowOrder(100_000, 3).take(0, 100_000)
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.015


def test_an_order_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="at least one row, got 0"):
        RowOrder(0)
