"""Where several datasets are trained on as one, the record knows the source of each row."""

from __future__ import annotations

import numpy as np
import pytest
from dataflex.core.files import ROW_SOURCES
from dataflex.rows.source_table import SourceTable
from dataflex.run.record import RunRecord
from datasets import Dataset

CODES = {"in order": [0, 0, 1, 1, 1], "shuffled": [1, 0, 1, 1, 0]}


def table(codes) -> SourceTable:
    rows = Dataset.from_list([{"input_ids": list(range(n + 1))} for n in range(5)])
    return SourceTable(rows, "train", (("first", "second"), np.array(codes, dtype=np.int16)))


@pytest.mark.parametrize("codes", CODES.values(), ids=CODES)
def test_rows_and_tokens_are_counted_for_the_source_that_each_row_is_of(codes):
    found = table(codes)
    tokens = [sum(n + 1 for n in range(5) if codes[n] == k) for k in (0, 1)]
    assert [source["tokens"] for source in found.described()] == tokens
    assert [source["rows"] for source in found.described()] == [codes.count(0), codes.count(1)]
    assert found.of(np.arange(5)).tolist() == codes
    counted = found.counted(np.array([0, 4, 4]), found.lengths(np.array([0, 4, 4])))
    assert sum(each["rows"] for each in counted.values()) == 3
    assert sum(each["tokens"] for each in counted.values()) == 1 + 5 + 5


def test_rows_in_order_need_the_first_of_each_source_and_others_a_number_each(tmp_path):
    ordered, shuffled = table(CODES["in order"]), table(CODES["shuffled"])
    assert [source["first"] for source in ordered.described()] == [0, 2]
    assert [source["first"] for source in shuffled.described()] == [None, None]
    record = RunRecord(str(tmp_path), writes=True)
    record.row_sources(shuffled.names, shuffled.codes, "0" * 16)
    with np.load(tmp_path / ROW_SOURCES) as file:
        assert file["sources"].tolist() == CODES["shuffled"]
        assert file["names"].tolist() == ["first", "second"]
        assert str(file["run"]) == "0" * 16
    record.row_sources(ordered.names, ordered.codes, "1" * 16)
    assert not (tmp_path / ROW_SOURCES).exists()


def test_a_source_of_which_no_row_is_left_has_none():
    rows = Dataset.from_list([{"input_ids": [1]}] * 2)
    found = SourceTable(rows, "train", (("none", "all", "neither"), np.array([1, 1], dtype=np.int16)))
    assert [(source["rows"], source["tokens"]) for source in found.described()] == [(0, 0), (2, 2), (0, 0)]
    assert found.of(np.arange(2)).tolist() == [1, 1]
