"""The file of scores: what is written is read again, and a run takes its rows by it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from dataflex.core.errors import ConfigError
from dataflex.rows.digest import rows_digest
from dataflex.run.row_file import read_row_file, values_digest
from dataflex.run.score_file import write_scores
from dataflex.testing import TokenRows, tiny_tokenizer
from dataflex_selectors.scores import ScoresSelector
from every_component import run_objects

LENGTHS = [4, 5, 6, 7, 8]
SCORES = np.array([0.5, np.nan, -1.0, 2.0, 0.25], dtype=np.float32)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "scores.parquet"
    about = {"component": "less", "step": 7}
    write_scores(path, SCORES, TokenRows(5, lengths=LENGTHS), tiny_tokenizer(), about)
    return path


def selector(file, rows=5, **params) -> ScoresSelector:
    made = ScoresSelector(**run_objects(TokenRows(rows, lengths=[*LENGTHS, 9][:rows])), file=str(file), **params)
    made.bind("scores", 3)
    return made


def chosen(made: ScoresSelector, count: int, update: int = 0) -> list[int]:
    return list(made.select(None, 10, count, context=SimpleNamespace(update=update)).indices)


def test_a_person_and_a_program_can_read_it(file):
    found = read_row_file(file, "score")
    np.testing.assert_array_equal(found.values, SCORES)
    digest = rows_digest(TokenRows(5, lengths=LENGTHS))
    digests = {"score": values_digest(SCORES)}
    made = {"component": "less", "step": 7, "rows": 5, "rows_digest": digest, "values_digest": digests}
    assert found.about == made
    table = pq.read_table(file).to_pydict()
    assert table["row"] == [0, 1, 2, 3, 4]
    assert table["score"][1] is None
    assert table["tokens"] == [4, 5, 6, 7, 8]
    assert len(set(table["text"])) == 5


def test_the_highest_are_taken_and_a_row_without_a_score_never(file):
    assert chosen(selector(file, mode="topk"), 3) == [3, 0, 4]
    drawn = [tuple(chosen(selector(file), 3, update)) for update in range(20)]
    assert len(set(drawn)) > 3
    assert not any(1 in rows for rows in drawn)


def test_a_file_of_another_dataset_or_none_is_refused(file, tmp_path):
    with pytest.raises(ConfigError, match=r"has 5 rows with the digest .* the train dataset 6 with the digest"):
        selector(file, rows=6)
    with pytest.raises(ConfigError, match=r"cannot be read.*dataflex-cli score"):
        selector(tmp_path / "nothing.parquet")
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(ConfigError, match="cannot be read"):
        selector(tmp_path / "text.parquet")
    (tmp_path / "text.npy").write_text("0.5")
    with pytest.raises(ConfigError, match=r"cannot be read: it is no file that numpy\.save wrote"):
        selector(tmp_path / "text.npy")
