"""Nearest rows are those of an exhaustive search; embeddings without a model and with another model's text encoder."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace
from typing import ClassVar

import datasets
import numpy as np
import pytest
import torch
from dataflex.core.errors import ConfigError
from dataflex.core.parameter_checks import require
from dataflex.rows.columns import column_chunks, labelled_rows
from dataflex.scoring.embedder import Embedder, embedding_problems
from dataflex.scoring.ngrams import ngram_embeddings
from dataflex.testing import TokenRows, pad_collate, tiny_model, tiny_tokenizer
from dataflex_selectors.near import NearSelector
from dataflex_selectors.parts import neighbours
from dataflex_selectors.parts.neighbours import backend_problem, nearest
from every_component import run_objects
from hypothesis import given
from hypothesis import strategies as st


def points(count, dim=5, seed=0):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def exhaustive(queries, pool, k):
    """The oracle: every distance by subtraction, sorted by distance and row number."""
    distances = np.linalg.norm(queries[:, None].astype(np.float64) - pool[None].astype(np.float64), axis=2)
    ids = np.argsort(distances.astype(np.float32), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, ids, axis=1), ids


# --- neighbours


@pytest.mark.parametrize(("queries", "pool", "k"), [(1, 1, 1), (3, 10, 4), (7, 50, 50), (20, 300, 33)])
@pytest.mark.parametrize("block", [1, 7, 64, 16384])
def test_neighbours_are_those_of_an_exhaustive_search_whatever_the_blocks(monkeypatch, queries, pool, k, block):
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    monkeypatch.setattr(neighbours, "_QUERIES", max(1, block // 2))
    q, x = points(queries), points(pool, seed=1)
    distances, ids = nearest(q, x, k)
    expected, expected_ids = exhaustive(q, x, k)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(distances, expected, rtol=1e-6)
    assert ids.dtype == np.int64


def test_no_neighbour_is_missing_where_more_are_asked_for_than_there_are():
    distances, ids = nearest(points(2), points(3, seed=1), 100)
    assert sorted(ids[0]) == sorted(ids[1]) == [0, 1, 2]
    assert np.isfinite(distances).all()


@pytest.mark.parametrize("block", [3, 10, 16384])
def test_duplicates_come_in_row_order_wherever_they_stand_in_a_block(monkeypatch, block):
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    x = np.repeat(points(4, dim=257), 25, axis=0)[np.random.default_rng(0).permutation(100)]
    _, ids = nearest(points(6, dim=257, seed=2), x, 30)
    np.testing.assert_array_equal(ids, exhaustive(points(6, dim=257, seed=2), x, 30)[1])


def test_a_query_that_is_in_the_pool_has_distance_zero():
    x = points(40, dim=64)
    distances, ids = nearest(x, x, 2)
    assert ids[:, 0].tolist() == list(range(40))
    assert distances[:, 0].max() < 1e-6
    assert distances[:, 1].min() > 1


@pytest.mark.skipif(backend_problem("faiss") is not None, reason="needs the extra faiss")
def test_faiss_finds_the_same_rows():
    q, x = points(9), points(200, seed=1)
    distances, ids = nearest(q, x, 12, backend="faiss")
    expected, expected_ids = exhaustive(q, x, 12)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(distances, expected, rtol=1e-4)


def test_faiss_is_used_through_a_flat_index_and_its_ties_are_put_in_row_order(monkeypatch):
    class IndexFlatL2:
        def __init__(self, dim):
            self.dim = dim

        def add(self, pool):
            self.pool = pool

        def search(self, queries, k):  # as faiss: float32 squares, -1 beyond the end, ties in any order
            squares = ((queries[:, None] - self.pool[None]) ** 2).sum(axis=2).astype(np.float32)
            ids = np.lexsort((-np.arange(len(self.pool)) * np.ones_like(squares), squares), axis=1)[:, :k]
            missing = np.full((len(queries), max(0, k - ids.shape[1])), -1)
            return np.take_along_axis(squares, ids, axis=1), np.concatenate([ids, missing], axis=1)

    monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace(IndexFlatL2=IndexFlatL2))
    x = np.repeat(points(5), 3, axis=0)
    np.testing.assert_array_equal(
        nearest(points(2, seed=1), x, 99, backend="faiss")[1], exhaustive(points(2, seed=1), x, 15)[1]
    )


def test_a_backend_that_is_unknown_or_not_installed_is_a_problem(monkeypatch):
    with pytest.raises(ConfigError, match=r"backend of the near selector: found 'fais', .* did you mean 'faiss'"):
        require("near selector", backend_problem("fais"))
    monkeypatch.setattr(neighbours, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"faiss is not installed -> pip install \"dataflex-selectors\[faiss\]\""):
        require("near selector", backend_problem("faiss"))
    assert backend_problem("torch") is None


# --- n-grams


def rows_of(*lists):
    return [np.array(tokens, dtype=np.int64) for tokens in lists]


def test_a_row_is_the_sum_of_its_tokens_and_pairs():
    def counts(tokens):  # undamped and up to a factor, from rows of one n-gram each
        single = ngram_embeddings(rows_of(tokens), 512)[0]
        return np.sign(single) * np.expm1(np.abs(single) * scale(tokens))

    def scale(tokens):  # 3 different tokens and 2 different pairs in 512 buckets that do not meet
        return np.log(2) * np.sqrt(2 * len(tokens) - 1)

    whole = counts([5, 6, 7])
    assert np.count_nonzero(np.round(whole, 4)) == 5
    assert set(np.round(np.abs(whole[np.abs(whole) > 0]), 3)) == {1.0}
    for first, second in ((5, 6), (6, 7)):
        pair = counts([first, second])
        held = np.flatnonzero(pair)
        assert len(held) == 3
        np.testing.assert_allclose(whole[held], pair[held], atol=1e-3)


def test_ngrams_know_the_order_of_tokens_and_no_pair_reaches_into_the_next_row():
    forward, backward = ngram_embeddings(rows_of([3, 4, 5], [5, 4, 3]), 4096)
    assert 0.5 < forward @ backward < 0.7  # 3 tokens of 5 n-grams in common
    joint = ngram_embeddings(rows_of([3, 4], [5], [], [6, 7, 8]), 256)
    apart = [ngram_embeddings(rows_of(tokens), 256)[0] for tokens in ([3, 4], [5], [], [6, 7, 8])]
    np.testing.assert_array_equal(joint, apart)


def test_ngrams_have_length_one_and_an_empty_row_is_zero():
    found = ngram_embeddings(rows_of([3, 3, 3, 4], [], [9]), 64)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 0, 1], rtol=1e-6)
    assert found.dtype == np.float32
    assert ngram_embeddings([], 64).shape == (0, 64)


def test_hashing_keeps_inner_products_on_average_and_within_its_noise():
    source, errors = np.random.default_rng(0), []
    for _ in range(300):  # disjoint tokens: the inner product without collisions is 0
        first = source.choice(np.arange(0, 50_000), 100, replace=False)
        second = source.choice(np.arange(50_000, 100_000), 100, replace=False)
        errors.append(float(np.prod(ngram_embeddings(rows_of(first, second), 1024).astype(np.float64), axis=0).sum()))
    assert abs(np.mean(errors)) < 4 * 0.031 / np.sqrt(300)
    assert 0.02 < np.std(errors) < 0.04  # 1 / sqrt(1024) = 0.031


@given(st.lists(st.lists(st.integers(0, 2**31), max_size=12), min_size=1, max_size=5), st.integers(1, 40))
def test_ngrams_take_any_tokens_and_any_number_of_buckets(lists, dim):
    found = ngram_embeddings(rows_of(*lists), dim)
    assert found.shape == (len(lists), dim)
    assert np.isfinite(found).all()


# --- columns


@pytest.mark.parametrize("lengths", [9, range(4, 20)])
def test_columns_of_a_stored_dataset_and_of_a_list_of_rows_are_the_same(lengths):
    rows = TokenRows(30, lengths=lengths)
    stored = datasets.Dataset.from_list([dict(row) | {"text": "x"} for row in rows])
    wanted = np.array([4, 0, 29, 4])
    for dataset in (rows, stored, stored.with_format("torch"), stored.with_transform(lambda batch: batch)):
        (chunk,) = column_chunks(dataset, "input_ids", wanted)
        assert [values.tolist() for values in chunk] == [rows[int(i)]["input_ids"] for i in wanted]


def test_rows_without_a_label_that_is_predicted_are_left_out():
    rows = [{"input_ids": [5, 6], "labels": labels} for labels in ([5, 6], [-100, -100], [5, -100], [-100, 6])]
    assert labelled_rows(rows).tolist() == [0, 3]
    assert labelled_rows(datasets.Dataset.from_list(rows)).tolist() == [0, 3]
    unlabelled = [{"input_ids": [5, 6]}] * 3
    assert labelled_rows(unlabelled).tolist() == labelled_rows(datasets.Dataset.from_list(unlabelled)).tolist()
    assert labelled_rows(unlabelled).tolist() == [0, 1, 2]


# --- the key `embedding`


def embedder(embedding, tokenizer=None, **params):
    options = {"dim": 64, "pooling": "mean", "token_budget": None, "collator": pad_collate, "accelerator": None}
    return Embedder(embedding=embedding, tokenizer=tokenizer, **(options | params))


def problems(embedding, **params):
    own = embedder(embedding, **params)
    found = [*embedding_problems(own.embedding, own.dim, own.pooling), own.without_tokenizer()]
    return [str(problem) for problem in found if problem is not None]


class Encoder:
    """Stands for a sentence-transformers model: counts of letters, and what it was asked."""

    asked: ClassVar = []

    def __init__(self, name, device):
        assert name == "some/encoder"

    def encode(self, texts, normalize_embeddings, show_progress_bar):
        assert normalize_embeddings
        self.asked.append(texts)
        counts = np.array([[text.count(letter) + 0.1 for letter in "abc"] for text in texts], dtype=np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture
def encoders(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Encoder))
    monkeypatch.setattr("dataflex.core.embedding_names.find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(Encoder, "asked", [])


def test_each_embedding_gives_one_vector_of_length_one_per_row(encoders):
    rows, model, tokenizer = TokenRows(12, lengths=range(4, 20)), tiny_model(), tiny_tokenizer()
    for name, width in (("ngrams", 64), ("model", 32), ("some/encoder", 3)):
        own = embedder(name, tokenizer)
        found = own.embed(model, rows, np.arange(12), "embedding")
        assert found.shape == (12, width)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(own.embed(model, rows, np.array([7, 2]), "embedding"), found[[7, 2]], atol=1e-6)
        assert own.moves == (name == "model")


def test_a_sentence_encoder_reads_the_text_without_special_tokens(encoders):
    tokenizer = tiny_tokenizer()
    texts = ["a b c", "some other text", "aaa"] * 150
    rows = [{"input_ids": [1, *tokenizer(text)["input_ids"], 2]} for text in texts]
    found = embedder("some/encoder", tokenizer).embed(tiny_model(), rows, np.arange(450), "embedding")
    assert [text for chunk in Encoder.asked[:2] for text in chunk] == texts
    assert found[2] == pytest.approx(found[449])
    assert found[2].argmax() == 0


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"embedding": "ngram"},
            "embedding: found 'ngram', allowed: ngrams, model, or the name .* -> did you mean 'ngr",
        ),
        ({"embedding": None}, "embedding: found None, allowed: ngrams, model"),
        ({"embedding": "ngrams", "dim": 0}, "dim: found 0, allowed: a whole number of at least 1"),
        ({"embedding": "model", "pooling": "max"}, "pooling: found 'max', allowed: mean, last, weighted"),
    ],
)
def test_wrong_parameters_of_an_embedding_are_problems(params, message):
    (problem,) = problems(**params)
    assert re.match(message, problem)


def test_rows_of_special_tokens_alone_have_no_text_and_are_left_out(encoders, caplog):
    tokenizer = tiny_tokenizer()
    ids = tokenizer(["one two", "three"], add_special_tokens=False)["input_ids"]
    silent = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    rows = [{"input_ids": own, "attention_mask": [1] * len(own), "labels": own} for own in (ids[0], silent, ids[1])]
    options = {"embedding": "some/encoder", "tokenizer": tokenizer}
    selector = NearSelector(**run_objects(rows, rows[:2]), **options)
    assert selector.eligible().tolist() == [0, 2]
    assert selector.embedded_target(None, 0).shape[0] == 1
    assert np.isnan(selector.scores(None, 0)).tolist() == [False, True, False]
    assert "'eval': 1 of 2 rows have no text and are left out" in caplog.text
    with pytest.raises(ConfigError, match="no row of the evaluation set 'eval' has text besides special tokens"):
        NearSelector(**run_objects(rows, rows[1:2]), **options)


def test_a_long_row_is_decoded_whole_only_where_its_head_has_no_text(encoders, monkeypatch):
    tokenizer = tiny_tokenizer()
    (word,), silent = tokenizer(["one"], add_special_tokens=False)["input_ids"][:1], tokenizer.eos_token_id
    word = word if isinstance(word, int) else word[0]
    lists = [[word] * 500, [silent] * 499 + [word], [silent] * 500, [silent] * 3]
    decoded, decode = [], tokenizer.batch_decode
    monkeypatch.setattr(
        tokenizer, "batch_decode", lambda ids, **kwargs: decoded.extend(map(len, ids)) or decode(ids, **kwargs)
    )
    rows = [{"input_ids": ids} for ids in lists]
    assert embedder("some/encoder", tokenizer).says_something(rows, np.arange(4)).tolist() == [True, True, False, False]
    assert decoded == [64, 64, 64, 3, 500, 500]


def test_a_sentence_encoder_needs_its_package_and_a_tokenizer(encoders, monkeypatch):
    (problem,) = problems("some/encoder")
    assert "the run has no tokenizer" in problem
    assert problems("some/encoder", tokenizer=tiny_tokenizer()) == []
    monkeypatch.setattr("dataflex.core.embedding_names.find_spec", lambda name: None)
    (problem,) = problems("some/encoder")
    assert 'pip install "sentence-transformers>=3.0"' in problem


def test_ngram_embeddings_of_the_nearest_row_are_those_of_the_row_that_shares_most():
    base = TokenRows(40, lengths=range(20, 40), seed=3)
    changed = [{**row, "input_ids": [9, *row["input_ids"][1:-1], 9]} for row in base]
    own = embedder("ngrams", dim=1024)
    every = np.arange(40)
    _, ids = nearest(own.embed(None, changed, every, ""), own.embed(None, base, every, ""), 1)
    assert ids[:, 0].tolist() == every.tolist()


def test_distances_are_computed_on_the_device_asked_for():
    device = torch.device("cpu")
    np.testing.assert_array_equal(
        nearest(points(3), points(9), 4, device=device)[1], nearest(points(3), points(9), 4)[1]
    )
