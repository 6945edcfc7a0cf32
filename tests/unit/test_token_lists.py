"""Lists of numbers of tokens by row number: of several datasets, and of rows that were put in another order."""

from __future__ import annotations

import datasets
import numpy as np
from dataflex.core.source_labels import labels_of_values
from dataflex.rows.split_sources import split
from dataflex.rows.token_lists import TokenLists, by_rows_of

FIRST = datasets.Dataset.from_dict({"weights": [[1.0], [2.0, 2.0], [], [4.0]]})
SECOND = datasets.Dataset.from_dict({"weights": [[5.0, 5.0], [6.0]]})


def numbers(lists, rows):
    return [own.tolist() for own in lists.of(np.asarray(rows))]


def test_lists_of_several_datasets_follow_each_other():
    lists = TokenLists([FIRST, SECOND], "weights")
    assert len(lists) == 6
    assert numbers(lists, [5, 0, 2, 4]) == [[6.0], [1.0], [], [5.0, 5.0]]
    assert [own.tolist() for chunk in lists.chunks() for own in chunk] == numbers(lists, range(6))


def test_rows_that_are_put_in_the_order_of_their_sources_keep_their_lists():
    rows = datasets.concatenate_datasets([FIRST, SECOND])
    labels = labels_of_values(["b", "a", "b", "a", "a", "b"], "mixture_by", "a test")
    apart = split(rows, labels)
    lists = by_rows_of(apart, {"weights": TokenLists([FIRST, SECOND], "weights")})["weights"]
    assert numbers(lists, range(6)) == [apart[row]["weights"] for row in range(6)]
    assert [own.tolist() for chunk in lists.chunks() for own in chunk] == numbers(lists, range(6))
    again = lists.in_order(np.array([3, 0]))
    assert numbers(again, [0, 1]) == [apart[3]["weights"], apart[0]["weights"]]


def test_rows_in_the_order_that_they_were_given_in_keep_theirs():
    lists = {"weights": TokenLists([FIRST], "weights")}
    assert by_rows_of(FIRST, lists) == lists
