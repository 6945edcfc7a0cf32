"""Vectors from a file: one for each row of the dataset, whatever view of it a selector has."""

from __future__ import annotations

import numpy as np
import pytest
from dataflex.core.errors import ComponentError
from dataflex.core.kinds import SELECTOR
from dataflex.core.source_labels import SourceLabels
from dataflex.discovery.catalog import lookup
from dataflex.discovery.stated_checks import stated_problems
from dataflex.rows.split_sources import split
from dataflex.rows.views import PlannedRows
from dataflex_selectors.parts.vector_file import VectorFile, vectors_problem


def saved(folder, array, name="v.npy"):
    np.save(folder / name, array)
    return str(folder / name)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_vectors_come_with_length_one_and_zeros_stay_zeros(tmp_path, kind):
    array = np.array([[3, 4], [0, 0], [0, -2]], dtype=kind)
    given = VectorFile("vectors", saved(tmp_path, array), range(3))
    assert given.problem is None
    assert given.width == 2
    np.testing.assert_allclose(given[np.array([2, 0, 1])], [[0, -1], [0.6, 0.8], [0, 0]], atol=1e-7)
    assert given[np.array([0])].dtype == np.float32


def test_behind_filters_a_row_has_the_vector_that_it_has_in_the_whole_dataset(tmp_path):
    array = np.eye(6, dtype=np.float32)
    view = PlannedRows(PlannedRows(list(range(6)), np.array([5, 3, 1, 0])), np.array([3, 1]))
    given = VectorFile("vectors", saved(tmp_path, array), view)
    assert given.problem is None
    assert given[np.array([0, 1])].argmax(1).tolist() == [0, 3]


def test_rows_that_mixture_by_has_sorted_by_source_keep_the_vectors_that_they_had_before(tmp_path):
    rows = [{"input_ids": [number]} for number in range(5)]
    mixed = split(rows, SourceLabels(("a", "b"), np.array([1, 0, 1, 0, 1])))
    file = saved(tmp_path, np.eye(5, dtype=np.float32))
    for dataset in (mixed, PlannedRows(mixed, np.array([3, 0, 4])), mixed.sources[1]):
        given = VectorFile("vectors", file, dataset)
        assert given.problem is None
        contents = [dataset[place]["input_ids"][0] for place in range(len(dataset))]
        assert given[np.arange(len(dataset))].argmax(1).tolist() == contents


def test_another_number_of_rows_is_refused_with_both_numbers(tmp_path):
    given = VectorFile("vectors", saved(tmp_path, np.eye(4)), list(range(3)))
    assert "4 vectors, for 3 rows" in str(given.problem)


@pytest.mark.parametrize(
    ("file", "embedding", "said"),
    [
        (7, "ngrams", "found 7"),
        ("  ", "ngrams", "allowed: the name of a .npy file"),
        ("nowhere.npy", "ngrams", "there is no such file"),
        ("nowhere.npy", "model", "beside embedding: model"),
    ],
)
def test_what_is_no_file_is_refused(file, embedding, said):
    assert said in str(vectors_problem("vectors", file, embedding))


@pytest.mark.parametrize("array", [np.ones(3), np.ones((2, 2, 2)), np.ones((2, 2), dtype=int), np.ones((2, 0))])
def test_a_file_of_something_else_is_refused(tmp_path, array):
    assert "needed: (rows, numbers)" in str(vectors_problem("vectors", saved(tmp_path, array), "ngrams"))


def test_a_damaged_file_and_an_archive_are_refused(tmp_path):
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY nothing")
    np.savez(tmp_path / "many.npz", a=np.eye(2))
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("bad.npy", "many.npz", "empty.npy"):
        assert "cannot be read" in str(vectors_problem("vectors", str(tmp_path / name), "ngrams")), name


def test_a_file_of_text_or_of_objects_is_refused_without_the_advice_to_load_it_unsafely(tmp_path):
    (tmp_path / "text.npy").write_text("0.1 0.2")
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    for name, why in (("text.npy", "no file that numpy.save wrote"), ("objects.npy", "holds Python objects")):
        said = str(vectors_problem("vectors", str(tmp_path / name), "ngrams"))
        assert why in said
        assert "pickle" not in said


@pytest.mark.parametrize("wrong", [np.nan, -np.inf])
def test_a_vector_that_is_not_finite_is_refused_when_the_file_is_named(tmp_path, wrong):
    array = np.ones((40_000, 2), dtype=np.float16)
    array[[16_384, 39_999], 1] = wrong
    file = saved(tmp_path, array)
    said = str(vectors_problem("vectors", file, "ngrams"))
    assert "2 rows (16384, 39999) of" in said
    assert "holds NaN or infinity -> write numbers" in said
    saved(tmp_path, np.ones((40_001, 2), dtype=np.float16))
    assert vectors_problem("vectors", file, "ngrams") is None


@pytest.mark.parametrize("name", ["deita", "semdedup"])
def test_it_is_refused_before_the_selector_is_imported(tmp_path, name):
    info = lookup(SELECTOR, name)
    file = saved(tmp_path, np.full((2, 2), np.nan))
    found = stated_problems(info.constructors, {**info.parameters, "vectors": file})
    assert ["2 rows (0, 1) of" in str(problem) for problem in found] == [True]


def test_a_file_is_looked_through_once_as_long_as_it_stays(tmp_path, monkeypatch):
    file, read = saved(tmp_path, np.eye(4)), []
    isfinite = np.isfinite
    monkeypatch.setattr(np, "isfinite", lambda part: read.append(len(part)) or isfinite(part))
    assert [vectors_problem("vectors", file, "ngrams") for _ in range(3)] == [None] * 3
    assert read == [4]


def test_a_vector_that_is_overwritten_in_training_is_refused_with_its_row(tmp_path):
    array = np.eye(4)
    array[2, 0] = np.nan
    given = VectorFile("vectors", saved(tmp_path, array), list(range(4)))
    given[np.array([0, 1, 3])]
    with pytest.raises(ComponentError, match=r"1 row \(2\) of .*holds NaN"):
        given[np.array([1, 2])]


def test_one_number_changed_is_another_digest(tmp_path):
    array = np.random.default_rng(0).random((20_000, 3), dtype=np.float32)
    first = VectorFile("vectors", saved(tmp_path, array), range(20_000)).digest()
    assert VectorFile("vectors", saved(tmp_path, array, "w.npy"), range(20_000)).digest() == first
    array[19_999, 2] += 1
    assert VectorFile("vectors", saved(tmp_path, array, "x.npy"), range(20_000)).digest() != first
