"""Dsir draws rows by the n-grams of a target; its numbers are those of the authors' program."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.kinds import SELECTOR
from dataflex.discovery.component_classes import find
from dataflex.scoring.ngrams import hashed_ngrams
from dataflex.testing import TokenRows, tiny_tokenizer
from dataflex_selectors.dsir import DsirSelector, counts_by_share, in_turn, log_ratio, ngrams_of
from dataflex_selectors.parts import row_grams
from dataflex_selectors.parts.hashed_words import WordBuckets, bucket_of, words_of
from every_component import run_objects
from golden_numbers import golden_cases
from hypothesis import given
from hypothesis import strategies as st

CASES = golden_cases("dsir")
BUCKETS = next(case for case in CASES if "strings" in case["inputs"])
COUNTS = [case for case in CASES if "texts" in case["inputs"]]
RUNS = [case for case in CASES if "raw_datasets" in case["inputs"]]


def name_of(case):
    return case["name"]


def dense(sparse, buckets):
    found = np.zeros(buckets)
    for bucket, count in sparse:
        found[bucket] = count
    return found


def targets(case):
    sets = case["inputs"]["target_datasets"]
    return sets if case["params"]["separate_targets"] else [[text for one in sets for text in one]]


def raw_texts(case):
    texts = [text for rows in case["inputs"]["raw_datasets"] for text in rows]
    order = case["outputs"].get("row_of_weight")
    return texts if order is None else [texts[row] for row in order]


class Noise:
    """Stands for a generator: draws the noise that the authors' program drew, target by target."""

    def __init__(self, noise):
        self._noise = [np.array(part) for part in noise]

    def standard_exponential(self, size):
        noise = self._noise.pop(0)
        assert len(noise) == size
        return np.exp(-noise)


# --- the authors' numbers


@pytest.mark.parametrize("buckets", BUCKETS["params"]["num_buckets"])
def test_the_bucket_of_an_ngram_is_that_of_the_authors_program(buckets):
    found = [bucket_of(text, buckets) for text in BUCKETS["inputs"]["strings"]]
    assert found == BUCKETS["outputs"]["buckets"][str(buckets)]


@pytest.mark.parametrize("case", COUNTS, ids=name_of)
def test_words_and_counts_are_those_of_the_authors_program(case):
    texts, buckets = case["inputs"]["texts"], case["params"]["num_buckets"]
    if case["outputs"].get("tokens") is not None:
        assert [words_of(text) for text in texts] == case["outputs"]["tokens"]
    found, rows, _ = WordBuckets(case["params"]["ngrams"], buckets).of(texts)
    for row, sparse in enumerate(case["outputs"]["counts_sparse"]):
        assert np.array_equal(np.bincount(found[rows == row], minlength=buckets), dense(sparse, buckets))


def weights_of(case):
    """Returns the weights by our functions, (N, J), and the words of each row."""
    params, buckets = case["params"], case["params"]["num_buckets"]
    words = WordBuckets(params["ngrams"], buckets)
    found, rows, lengths = words.of(raw_texts(case))
    raw = np.bincount(found, minlength=buckets).astype(float)
    if params["num_tokens_to_fit"] != "auto":  # it ends after the text that passes the limit
        last = int(np.searchsorted(np.cumsum(np.bincount(rows)), params["num_tokens_to_fit"], side="right"))
        raw = np.bincount(found[rows <= last], minlength=buckets).astype(float)
    assert np.array_equal(raw, dense(case["outputs"]["raw_counts_sparse"], buckets))
    columns = []
    for texts, sparse in zip(targets(case), case["outputs"]["target_counts_sparse"], strict=True):
        counts = np.bincount(words.of(texts)[0], minlength=buckets).astype(float)
        assert np.array_equal(counts, dense(sparse, buckets))
        ratio = log_ratio(counts, raw, params["target_laplace_smoothing"])
        columns.append(np.bincount(rows, ratio[found], len(lengths)))
    return np.stack(columns, axis=1), lengths


@pytest.mark.parametrize("case", RUNS, ids=name_of)
def test_weights_and_lengths_are_those_of_the_authors_program(case):
    weights, lengths = weights_of(case)
    expected = np.array(case["outputs"]["log_importance_weights"]).reshape(len(lengths), -1)
    np.testing.assert_allclose(weights, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    assert lengths.tolist() == case["outputs"]["length_metadata"]


@pytest.mark.parametrize("case", [case for case in RUNS if "selected_rows" in case["outputs"]], ids=name_of)
def test_with_the_same_noise_the_rows_drawn_are_those_of_the_authors_program(case):
    params, outputs = case["params"], case["outputs"]
    weights, lengths = weights_of(case)
    weights[lengths < params["min_example_length"]] = -np.inf
    shares = np.ones(1)
    if params["separate_targets"]:
        shares = np.array(
            params["target_proportions"] or [sum(n for _, n in s) for s in outputs["target_counts_sparse"]]
        )
    counts = counts_by_share(case["inputs"]["num_to_sample"], shares.astype(float))
    noise = None if params["top_k"] else Noise(outputs["gumbel_noise"])
    rows, takers = in_turn(weights, counts, noise)
    order = outputs.get("row_of_weight") or range(len(weights))
    assert sorted(order[row] for row in rows.tolist()) == outputs["selected_sorted"]
    assert np.bincount(takers, minlength=len(counts)).tolist() == counts


def test_as_many_as_there_are_can_be_asked_for_where_their_program_fails():
    case = next(case for case in RUNS if "error" in case["outputs"])
    weights, _ = weights_of(case)
    rows, _ = in_turn(weights, [case["inputs"]["num_to_sample"]], Noise(case["outputs"]["gumbel_noise"]))
    keys = weights[:, 0] + np.array(case["outputs"]["gumbel_noise"][0])
    assert rows.tolist() == np.argsort(-keys).tolist()


# --- the parts


@given(st.lists(st.lists(st.integers(0, 5), max_size=9), max_size=5), st.integers(1, 4))
def test_ngrams_of_tokens_are_equal_where_their_tokens_are(rows, most):
    grams, places = hashed_ngrams([np.array(row, dtype=np.int64) for row in rows], most)
    expected = [
        (tuple(row[first : first + size]), number)
        for size in range(1, most + 1)
        for number, row in enumerate(rows)
        for first in range(len(row) - size + 1)
    ]
    assert places.tolist() == [number for _, number in expected]
    bits = {}
    for (gram, _), found in zip(expected, grams.tolist(), strict=True):
        assert bits.setdefault(gram, found) == found
    assert len(set(bits.values())) == len(bits)


def test_a_forgotten_bucket_is_the_same_bucket(monkeypatch):
    from dataflex_selectors.parts import hashed_words

    texts = [f"a b c {number} d" for number in range(50)]
    expected = WordBuckets(3, 97).of(texts)
    monkeypatch.setattr(hashed_words, "_REMEMBERED", 3)
    words = WordBuckets(3, 97)
    found = [words.of([text]) for text in texts]
    assert np.concatenate([part[0] for part in found]).tolist() == expected[0].tolist()


@pytest.mark.parametrize("most", [1, 2, 3])
def test_an_empty_text_has_no_word_and_no_ngram_where_their_program_counts_one(most):
    found, rows, words = WordBuckets(most, 10).of(["", "  \n", "one"])
    assert (len(found), rows.tolist(), words.tolist()) == (1, [2], [0, 0, 1])
    assert ngrams_of(np.array([0, 1, 5]), most).tolist() == [0, 1, sum(5 - n for n in range(most))]


@pytest.mark.parametrize(("total", "shares", "counts"), [(6, [1, 3], [1, 5]), (5, [1], [5]), (0, [1, 1], [0, 0])])
def test_the_last_target_takes_what_is_left(total, shares, counts):
    assert counts_by_share(total, np.array(shares, dtype=float)) == counts


def test_rows_are_drawn_by_their_weights_and_never_those_of_weight_zero():
    weights = np.log([[1.0], [2.0], [4.0], [1e-300]])
    weights[3] = -np.inf
    drawn = [in_turn(weights, [1], np.random.default_rng(seed))[0][0] for seed in range(4000)]
    shares = np.bincount(drawn, minlength=4) / 4000
    np.testing.assert_allclose(shares, np.array([1, 2, 4, 0]) / 7, atol=0.03)


# --- the selector


TEXTS = {
    "cook": ["stir the sauce until it is thick", "bake the bread for an hour", "add salt and butter to the soup"],
    "law": ["the tenant shall pay the rent", "the court held the contract void", "an appeal must be filed in ten days"],
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer([text for texts in TEXTS.values() for text in texts], vocab_size=200)


def rows_of(texts, tokenizer):
    found = []
    for text in texts:
        tokens = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        found.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": tokens})
    return found


@pytest.fixture(scope="module")
def data(tokenizer):
    generator = np.random.default_rng(0)
    families = generator.permutation(["cook", "law"] * 30)
    texts = [" ".join(generator.choice(" ".join(TEXTS[family]).split(), 8)) for family in families]
    return rows_of(texts, tokenizer), texts, families


def build(dataset, target, tokenizer, seed=7, **params):
    selector = DsirSelector(
        **run_objects(dataset, target), tokenizer=tokenizer, **{"buckets": 500, "smoothing": 0.0} | params
    )
    selector.bind("dsir", seed)
    return selector


def context(update):
    return UpdateContext(update, 9, 10 * update, 90, 1e-3, None)


def pick(selector, count, update=0):
    answer = selector.select(None, 10 * update, count, context=context(update))
    assert len(answer.scores) == len(set(answer.indices.tolist())) == count
    return answer.indices.tolist()


def test_the_entry_point_leads_to_the_class():
    assert find(SELECTOR, "dsir") is DsirSelector


@pytest.mark.parametrize("features", ["words", "tokens"])
def test_the_family_of_the_target_is_drawn(data, tokenizer, features):
    rows, _, families = data
    for family in ("cook", "law"):
        selector = build(rows, rows_of(TEXTS[family], tokenizer), tokenizer, features=features, smoothing=0.1)
        assert (families[pick(selector, 20)] == family).all()


def test_the_weights_of_the_selector_are_those_of_the_texts(data, tokenizer, monkeypatch):
    """Against the formula, gram by gram; in stretches of a few rows."""
    monkeypatch.setattr(row_grams, "_ROWS", 7)
    rows, texts, _ = data
    selector = build(rows, rows_of(TEXTS["cook"], tokenizer), tokenizer, smoothing=0.5)
    found = selector.scores(None, 0, context=context(0))

    def grams(text):
        words = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).lower().split()
        return [*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))]

    raw, aim = np.zeros(500), np.zeros(500)
    for text in texts:
        for gram in grams(text):
            raw[bucket_of(gram, 500)] += 1
    for text in TEXTS["cook"]:
        for gram in grams(text):
            aim[bucket_of(gram, 500)] += 1
    ratio = log_ratio(aim, raw, 0.5)
    expected = [sum(ratio[bucket_of(gram, 500)] for gram in grams(text)) for text in texts]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    means = build(rows, rows_of(TEXTS["cook"], tokenizer), tokenizer, smoothing=0.5, per_ngram=True)
    lengths = [len(grams(text)) for text in texts]
    np.testing.assert_allclose(means.scores(None, 0, context=context(0)), np.array(expected) / lengths, rtol=1e-5)


def test_a_run_draws_one_sample_without_replacement_over_its_updates(data, tokenizer):
    rows, _, _ = data
    selector = build(rows, rows_of(TEXTS["cook"], tokenizer), tokenizer, smoothing=0.1)
    stream = list(itertools.chain(*(pick(selector, 25, update) for update in range(5))))
    assert sorted(stream[:60]) == list(range(60)), "the third update takes the last ten and begins anew"
    assert len(set(stream[50:110])) == 60, "the ten do not come again before all others have"
    again = build(rows, rows_of(TEXTS["cook"], tokenizer), tokenizer, smoothing=0.1, exclude_seen=False, mode="topk")
    assert pick(again, 25, 0) == pick(again, 25, 1)
    weights = again.scores(None, 0, context=context(0))
    assert pick(again, 25, 2) == np.argsort(-weights, kind="stable")[:25].tolist()


def test_separate_targets_take_rows_by_their_shares(data, tokenizer):
    rows, _, families = data
    aims = {name: rows_of(texts, tokenizer) for name, texts in TEXTS.items()}
    selector = build(rows, aims, tokenizer, smoothing=0.1, separate=True, shares={"law": 3, "cook": 1})
    found = families[pick(selector, 20)]
    assert found.tolist() == ["cook"] * 5 + ["law"] * 15
    by_count = build(rows, aims, tokenizer, smoothing=0.1, separate=True)
    cook = sum(2 * len(t.split()) - 1 for t in TEXTS["cook"]) / sum(
        2 * len(t.split()) - 1 for texts in TEXTS.values() for t in texts
    )
    assert (families[pick(by_count, 20)] == "cook").sum() == int(20 * cook)
    mixed = selector.scores(None, 0, context=context(0))
    assert np.isfinite(mixed).all()


def test_short_rows_are_never_taken_and_too_few_are_an_error(data, tokenizer):
    rows, _, _ = data
    short = [*rows, *rows_of(["salt", "soup"], tokenizer)]
    selector = build(short, rows_of(TEXTS["cook"], tokenizer), tokenizer, min_length=2)
    assert sorted(pick(selector, 60)) == list(range(60))
    scores = selector.scores(None, 0, context=context(0))
    assert np.isneginf(scores[60:]).all()
    assert np.isfinite(scores[:60]).all()
    with pytest.raises(ComponentError, match="61 rows are wanted, but only 60 of 62 have a label and 2 words or more"):
        pick(selector, 61, 1)


def test_rows_without_a_label_have_no_score(data, tokenizer):
    rows, _, _ = data
    dataset = [row | {"labels": [-100] * len(row["labels"])} if i % 2 else row for i, row in enumerate(rows)]
    selector = build(dataset, rows_of(TEXTS["cook"], tokenizer), tokenizer)
    assert np.isnan(selector.scores(None, 0, context=context(0))).tolist() == [bool(i % 2) for i in range(60)]
    assert all(row % 2 == 0 for row in pick(selector, 30))


def test_a_limit_on_the_fit_draws_stretches_and_the_weights_hardly_move(data, tokenizer, monkeypatch):
    monkeypatch.setattr(row_grams, "_ROWS", 5)
    rows, _, _ = data
    aim = rows_of(TEXTS["cook"], tokenizer)
    whole = build(rows * 20, aim, tokenizer, smoothing=0.1).scores(None, 0, context=context(0))
    some = build(rows * 20, aim, tokenizer, smoothing=0.1, fit_ngrams=40_000).scores(None, 0, context=context(0))
    assert not np.array_equal(whole, some)
    assert np.corrcoef(whole, some)[0, 1] > 0.95
    again = build(rows * 20, aim, tokenizer, smoothing=0.1, fit_ngrams=40_000).scores(None, 0, context=context(0))
    assert np.array_equal(again, some)


def test_a_resumed_run_draws_what_the_whole_one_does_and_reads_no_text_again(data, tokenizer, monkeypatch):
    rows, _, _ = data
    aim = {name: rows_of(texts, tokenizer) for name, texts in TEXTS.items()}
    for params in ({}, {"separate": True}, {"mode": "topk"}):
        through, picks, states = build(rows, aim, tokenizer, **params), [], []
        for update in range(5):
            states.append(through.state_dict())
            picks.append(pick(through, 17, update))
        for begin in range(5):
            resumed = build(rows, aim, tokenizer, **params)
            resumed.load_state_dict(states[begin])
            if begin:
                monkeypatch.setattr(row_grams.RowGrams, "sums", None)
            assert [pick(resumed, 17, update) for update in range(begin, 5)] == picks[begin:]
            monkeypatch.undo()


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"features": "chars"}, "words, tokens"),
        ({"ngrams": 0}, "whole number of at least 1"),
        ({"buckets": 1}, "whole number of at least 2"),
        ({"smoothing": -1}, "at least 0"),
        ({"mode": "best"}, "sample, topk"),
        ({"temperature": 0}, "above 0"),
        ({"shares": {"eval": 1}}, "beside separate: false"),
        ({"shares": [1, 2], "separate": True}, "a share above 0 for each evaluation set"),
        ({"shares": {"evl": 1.0}, "separate": True}, "the evaluation sets are"),
        ({"fit_ngrams": 0}, "100,000 for each bucket"),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(data, tokenizer, params, said):
    with pytest.raises(ConfigError, match=said):
        build(data[0], rows_of(TEXTS["cook"], tokenizer), tokenizer, **params)


def test_words_need_a_tokenizer_and_a_target_with_words(data, tokenizer):
    rows, _, _ = data
    with pytest.raises(ConfigError, match=r"has no tokenizer .* or use tokens"):
        build(rows, TokenRows(3), None)
    build(rows, TokenRows(3), None, features="tokens")
    special = [{"input_ids": [tokenizer.eos_token_id] * 3, "labels": [tokenizer.eos_token_id] * 3}]
    selector = build(rows, special, tokenizer)
    with pytest.raises(ConfigError, match="no row of the evaluation set has words besides special tokens"):
        selector.check_run(None, RunAhead(1, 10, 5))
    with pytest.raises(ConfigError, match="no evaluation set"):
        build(rows, None, tokenizer)


def test_nothing_is_drawn_from_the_global_generators(data, tokenizer):
    np.random.seed(3)
    expected = np.random.RandomState(3).random()
    pick(build(data[0], rows_of(TEXTS["cook"], tokenizer), tokenizer), 5)
    assert np.random.random() == expected
