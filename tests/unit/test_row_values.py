"""Files with a number per row: one reader for all that take them, which looks for whose rows they are."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataflex.core.construct import constructor_parameters
from dataflex.core.errors import CheckpointError, ConfigError
from dataflex.core.kinds import MIXER, SELECTOR, WEIGHTER
from dataflex.core.registry import find, official
from dataflex.rows.digest import rows_digest
from dataflex.run.row_file import DIGEST, METADATA, SUFFIXES, VALUES_DIGEST, read_row_file
from dataflex.run.scores import write_scores
from dataflex.run.state import load_state, save_state
from dataflex.testing import TokenRows
from dataflex_selectors.rho_loss import RhoLossSelector
from dataflex_selectors.scores import ScoresSelector
from dataflex_weighters.column import ColumnWeighter
from every_component import run_objects

ROWS = 6
DATASET = TokenRows(ROWS)
VALUES = np.array([0.5, 1.0, 4.0, 2.0, 0.25, 3.0])
SHUFFLED = np.array([3, 0, 5, 1, 4, 2])

READERS = {
    "scores": ("score", lambda file, rows: ScoresSelector(**run_objects(rows), file=file), lambda made: made._scores_N),
    "column": ("weight", lambda file, rows: ColumnWeighter(rows, file=file), lambda made: made.weights_N),
    "rho_loss": (
        "irreducible_loss",
        lambda file, rows: RhoLossSelector(**run_objects(rows), file=file),
        lambda made: made._known(),
    ),
}
"""Component -> the column that it reads, how to make one, and the numbers that it has then."""

ELSEWHERE = {"schedule": "points of a mixture, no numbers of rows"}
"""Components with a parameter ``file`` that is something else."""

every = pytest.mark.parametrize("component", READERS)


def written(folder: Path, name: str, values, rows=None, suffix=".parquet", digest=None) -> str:
    path = folder / f"values{suffix}"
    arrays = {name: np.asarray(values)} | ({} if rows is None else {"row": np.asarray(rows)})
    if suffix == ".parquet":
        about = {} if digest is None else {METADATA: json.dumps({"rows": len(values), DIGEST: digest})}
        pq.write_table(pa.table(arrays).replace_schema_metadata(about), path)
    elif suffix == ".npz":
        np.savez(path, **arrays)
    else:
        np.save(path, arrays[name])
    return str(path)


def read(component: str, file: str, dataset=DATASET) -> list[float]:
    _, make, numbers = READERS[component]
    return numbers(make(file, dataset)).tolist()


def refused(component: str, file: str, message: str, dataset=DATASET) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read(component, file, dataset)
    kind = "weighter" if component == "column" else "selector"
    assert f"file of the {component} {kind}: " in str(error.value)


def test_every_component_that_takes_a_file_is_here():
    taking = set()
    for kind in (SELECTOR, MIXER, WEIGHTER):
        for name in official(kind):
            if "file" in constructor_parameters(find(kind, name))[0]:
                taking.add(name)
    assert taking == set(READERS) | set(ELSEWHERE)


@every
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_numbers_without_rows_are_those_of_the_rows_in_order_and_taken_on_trust(component, suffix, tmp_path, caplog):
    file = written(tmp_path, READERS[component][0], VALUES, suffix=suffix)
    assert read(component, file) == VALUES.tolist()
    said = [record.message for record in caplog.records if "taken on trust, in its order" in record.message]
    assert len(said) == 1
    assert file in said[0]


@every
@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_numbers_are_put_in_the_order_of_their_rows(component, suffix, tmp_path, caplog):
    file = written(tmp_path, READERS[component][0], VALUES[SHUFFLED], SHUFFLED, suffix)
    assert read(component, file) == VALUES.tolist()
    assert "taken on trust, by its column row" in caplog.text


@every
@pytest.mark.parametrize("rows", [None, SHUFFLED])
def test_a_digest_of_these_rows_is_taken_without_a_word_and_another_refused(component, rows, tmp_path, caplog):
    name, values = READERS[component][0], VALUES if rows is None else VALUES[rows]
    file = written(tmp_path, name, values, rows, digest=rows_digest(DATASET))
    assert read(component, file) == VALUES.tolist()
    assert "trust" not in caplog.text
    other = TokenRows(ROWS, seed=5)
    theirs, ours = rows_digest(DATASET), rows_digest(other)
    message = rf"6 rows with the digest {theirs}.*6 with the digest {ours} -> make .*val_size.*seed.*cutoff_len"
    refused(component, file, message, other)


@every
@pytest.mark.parametrize(
    ("values", "rows", "message"),
    [
        (VALUES[:-1], None, "has 5 numbers and no column row, for 6 rows of the train dataset -> give one per row"),
        (VALUES, [0, 1, 2, 3, 4, 6], r"numbers for 1 row \(6\), outside of the train dataset, whose rows are 0 to 5"),
        (VALUES, [0, 1, -2, 3, 4, 5], r"numbers for 1 row \(-2\), outside"),
        (VALUES, [0, 1, 1, 3, 3, 5], r"more than one number for 2 rows \(1, 3\) -> leave one for each row"),
        (VALUES[:3], [5, 0, 1], r"no number for 3 rows \(2, 3, 4\) of the 6 of the train dataset -> add them"),
        (VALUES, [0.0, 1, 2, 3, 4, 5], "the column row of .* holds float64"),
        (VALUES.reshape(2, 3), None, r"holds float64 of shape \(2, 3\); needed: a number for each row"),
        (["1"] * ROWS, None, "needed: a number for each row"),
    ],
)
def test_rows_that_are_missing_repeated_or_not_there_are_refused_by_name(component, values, rows, message, tmp_path):
    suffix = ".npz" if np.ndim(values) > 1 else ".parquet"
    refused(component, written(tmp_path, READERS[component][0], values, rows, suffix), message)


@every
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04 and no more", b"PAR1"])
def test_a_broken_file_is_one_sentence(component, suffix, content, tmp_path):
    (tmp_path / f"a{suffix}").write_bytes(content)
    refused(component, str(tmp_path / f"a{suffix}"), "cannot be read: ")


@every
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_pipe_is_one_sentence_and_not_waited_for(component, suffix, tmp_path):
    os.mkfifo(tmp_path / f"a{suffix}")
    refused(component, str(tmp_path / f"a{suffix}"), "it is no file|does not exist")


@pytest.mark.parametrize("about", ["no json", "[]", "3"])
def test_broken_metadata_is_one_sentence(about, tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"score": VALUES}).replace_schema_metadata({METADATA: about}), file)
    refused("scores", str(file), "cannot be read: ")


def test_every_flipped_bit_of_an_npy_is_another_number_or_an_error_that_is_foreseen(tmp_path):
    path = tmp_path / "values.npy"
    np.save(path, VALUES[:5])
    content = path.read_bytes()
    said = []
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NumPy says that a header is an old one
                read_row_file(path, "score")
        except (OSError, ValueError) as error:
            said.append(str(error))
    assert len(said) > 100
    assert all(said)


def test_the_digest_of_the_scores_says_nothing_of_other_columns(tmp_path):
    file = tmp_path / "scores.parquet"
    write_scores(file, VALUES, DATASET, None, {})
    table = pq.read_table(file)
    assert json.loads(table.schema.metadata[METADATA])[VALUES_DIGEST].keys() == {"score"}
    pq.write_table(table.append_column("weight", pa.array(VALUES[::-1])), file)
    assert read("column", str(file)) == VALUES[::-1].tolist()
    assert read_row_file(file, "tokens").values.tolist() == table["tokens"].to_pylist()
    assert read("scores", str(file)) == VALUES.tolist()
    pq.write_table(table.set_column(1, "score", pa.array(VALUES[::-1])), file)
    refused("scores", str(file), "its numbers of 'score' are not those that were written")


def test_what_score_writes_holds_the_rows_that_it_is_for_in_full_precision(tmp_path):
    scores = np.array([1e300, -np.inf, np.nan, 1 + 1e-12, 1.0, -2.0])
    write_scores(tmp_path / "s.parquet", scores, DATASET, None, {"component": "less", "step": 7, "seed": 3})
    found = ScoresSelector(**run_objects(DATASET), file=str(tmp_path / "s.parquet"), mode="topk")
    np.testing.assert_array_equal(found._scores_N, scores)
    found.bind("scores", 0)
    chosen = found.select(None, 0, 4, context=SimpleNamespace(update=0))
    assert chosen.indices.tolist() == [0, 3, 4, 5]
    message = r"\(component less, step 7, seed 3\), the train dataset 7 with the digest"
    refused("scores", str(tmp_path / "s.parquet"), message, TokenRows(7))


@every
def test_a_run_is_resumed_with_the_numbers_that_it_began_with(component, tmp_path):
    name, make, _ = READERS[component]
    state = make(written(tmp_path, name, VALUES), DATASET).state_dict()
    save_state(tmp_path, {"identity": {}, "component": state})
    state = load_state(tmp_path)["component"]
    make(written(tmp_path, name, VALUES[SHUFFLED], SHUFFLED), DATASET).load_state_dict(state)
    other = make(written(tmp_path, name, VALUES[SHUFFLED]), DATASET)
    with pytest.raises(
        CheckpointError, match=r"values\.parquet holds other numbers than when the checkpoint was written"
    ):
        other.load_state_dict(state)
