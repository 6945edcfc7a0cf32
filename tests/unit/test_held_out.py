"""``val_size`` over several sources: as many rows as a static run holds out, and every source keeps one to train on."""

from __future__ import annotations

import pytest
from dataflex.core.errors import ConfigError
from dataflex.rows.held_out import evenly, held_out_rows, in_words


@pytest.mark.parametrize(
    ("sizes", "val_size", "counts"),
    [
        ((40, 40, 40), 15, (5, 5, 5)),
        ((3, 40, 40), 15, (1, 7, 7)),
        ((10, 20, 30), 1, (0, 0, 1)),
        ((10, 20, 30), 2, (0, 1, 1)),
        ((2, 2, 2), 3, (1, 1, 1)),
        ((2, 2, 2), 2, (1, 1, 0)),
        ((1, 1, 30), 15, (0, 0, 15)),
        ((1, 1, 30), 29, (0, 0, 29)),
        ((2, 3, 100), 102, (1, 2, 99)),
        ((10, 15, 3), 0.1, (1, 2, 1)),
    ],
)
def test_rows_are_apportioned_by_size(sizes, val_size, counts):
    found = held_out_rows(dict(zip("abc", sizes, strict=True)), val_size)
    assert tuple(found.values()) == counts
    assert val_size < 1 or sum(found.values()) == val_size


@pytest.mark.parametrize("total", range(1, 60))
def test_the_total_is_met_and_no_source_is_emptied(total):
    sizes = {"a": 3, "b": 17, "c": 1, "d": 42}
    counts = held_out_rows(sizes, total)
    assert sum(counts.values()) == total
    assert all(0 <= counts[name] < sizes[name] for name in sizes)


def test_a_source_that_would_be_emptied_is_named():
    with pytest.raises(ConfigError, match=r"a \(3 rows\), b \(1 row\).* -> set val_size to 2 or less"):
        held_out_rows({"a": 3, "b": 1}, 3)
    with pytest.raises(ConfigError, match=r"val_size: 0.5 .*b \(1 row\) -> add rows"):
        held_out_rows({"a": 3, "b": 1}, 0.5)


def test_streams_give_equally_many_and_the_first_ones_the_rest():
    assert evenly(["a", "b", "c"], 2) == {"a": 1, "b": 1, "c": 0}
    assert in_words(evenly(["a", "b", "c"], 4)) == "2 rows of a, 1 row of b, 1 row of c"
    assert in_words({"a": 0}) == "none of a"
