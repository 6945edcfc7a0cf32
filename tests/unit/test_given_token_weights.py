"""``token_column`` and ``spans``: weights of tokens that the data gives, token by token or between markers."""

from __future__ import annotations

import logging

import datasets
import numpy as np
import pytest
import torch
from dataflex.core.errors import CheckpointError, ComponentError, ConfigError
from dataflex.interfaces.weighter import MicroBatch
from dataflex.model.label_logits import IGNORED
from dataflex.objective.samples import ROWS as SAMPLES
from dataflex.rows.token_lists import TokenLists
from dataflex.rows.views import MixedSources
from dataflex.testing import TokenRows, tiny_tokenizer
from dataflex_weighters.parts.token_places import before_labels, on_host, placed_numbers
from dataflex_weighters.parts.token_texts import TokenTexts
from dataflex_weighters.spans import SpansWeighter, marker_before, span_runs, token_weights_of, trained_stretches
from dataflex_weighters.token_column import TokenColumnWeighter
from weighted_run import weighted

ROWS = TokenRows(12, lengths=range(6, 17), prompt=3)
THINK = [{"start": "<think>", "end": "</think>", "weight": 0.25}]


def with_weights(rows=ROWS, weights=None, name="token_weights"):
    """Rows with a column: row i, token t has (i + t) % 5 / 2, or what is given."""
    plain = [dict(rows[i]) for i in range(len(rows))]
    given = weights or [[(i + t) % 5 / 2 for t in range(len(row["input_ids"]))] for i, row in enumerate(plain)]
    return datasets.Dataset.from_list([row | {name: own} for row, own in zip(plain, given, strict=True)])


def run(folder, name, params, rows, **args):
    plain = {
        "max_steps": 2,
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": 4,
    }
    done = weighted(folder, name, params, rows, **(plain | args))
    done.train()
    return done


def losses(done):
    return [line["loss"] for line in done.state.log_history if "loss" in line]


# -- where tokens stand in a batch


def micro(rows, numbers, shift=0, flat=False):
    parts = [rows[n] for n in numbers]
    T = max(len(part["input_ids"]) for part in parts)
    if flat:
        ids, labels = (torch.tensor([[v for part in parts for v in part[key]]]) for key in ("input_ids", "labels"))
    else:
        ids, labels = (
            torch.stack(
                [
                    torch.tensor(
                        [
                            *([fill] * (T - len(p[key])) if shift else []),
                            *p[key],
                            *([] if shift else [fill] * (T - len(p[key]))),
                        ]
                    )
                    for p in parts
                ]
            )
            for key, fill in (("input_ids", 0), ("labels", IGNORED))
        )
    return MicroBatch({"input_ids": ids, "labels": labels}, SAMPLES, torch.tensor(numbers))


@pytest.mark.parametrize("how", ["right", "left", "flat"])
def test_each_number_goes_to_its_own_token(how):
    numbers = [3, 0, 7, 7] if how != "flat" else [3, 0, 7, 7, 1]
    batch = on_host([micro(ROWS, numbers, shift=how == "left", flat=how == "flat")])[0]

    def by_id(rows):  # a number that tells the row and the token
        return [1000.0 * row + np.arange(len(ROWS[row]["input_ids"])) for row in rows.tolist()]

    placed = placed_numbers(batch, ROWS, by_id, "numbers")
    read = [value for line in placed for value in line[~np.isnan(line)]]
    assert read == [value for row in numbers for value in by_id(np.array([row]))[0]]
    for line, token in zip(*np.nonzero(~np.isnan(placed)), strict=True):
        row, place = divmod(int(placed[line, token]), 1000)
        assert batch.tokens[line, token] == ROWS[row]["input_ids"][place]
    moved = before_labels(placed, torch.device("cpu"))
    assert torch.equal(moved[:, :-1], torch.from_numpy(np.nan_to_num(placed))[:, 1:])


def test_a_row_that_a_collator_has_cut_or_changed_is_refused_by_number():
    def numbers(rows):
        return [np.ones(len(ROWS[row]["input_ids"])) for row in rows.tolist()]

    cut = micro(ROWS, [3])
    cut = MicroBatch({key: value[:, 1:] for key, value in cut.inputs.items()}, SAMPLES, cut.rows)
    with pytest.raises(ComponentError, match="row 3 of the train dataset does not stand in its batch"):
        placed_numbers(on_host([cut])[0], ROWS, numbers, "weights")
    more = micro(ROWS, [3])
    more.inputs["labels"][:] = 5  # labels that the row has not: of its prompt these have numbers, of padding none
    placed_numbers(on_host([more])[0], ROWS, numbers, "weights")
    padded = micro(ROWS, [3, int(np.argmax([len(ROWS[i]["input_ids"]) for i in range(12)]))])
    padded.inputs["labels"][:] = 5
    with pytest.raises(ComponentError, match="is trained on and has no number of weights"):
        placed_numbers(on_host([padded])[0], ROWS, numbers, "weights")
    with pytest.raises(ComponentError, match="does not say which rows"):
        placed_numbers(on_host([MicroBatch(more.inputs, SAMPLES, None)])[0], ROWS, numbers, "weights")
    with pytest.raises(ComponentError, match="no input_ids and labels of one shape"):
        on_host([MicroBatch({"labels": more.inputs["labels"]}, SAMPLES, None)])


# -- a column


def expected(done_rows, denominator):
    """The weighted loss of rows under the tiny model, by plain loops."""
    from dataflex.testing import tiny_model

    model, above, below = tiny_model().eval(), 0.0, 0.0
    for row in done_rows:
        with torch.no_grad():
            logp = torch.log_softmax(model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double(), -1)
        for t in range(1, len(row["labels"])):
            if row["labels"][t] != IGNORED:
                above += row["token_weights"][t] * -logp[t - 1, row["input_ids"][t]].item()
                below += row["token_weights"][t] if denominator == "weights" else 1
    return above / below


@pytest.mark.parametrize("denominator", ["weights", "tokens"])
@pytest.mark.parametrize("sizes", [(12, 1), (3, 4)])
def test_the_loss_of_a_step_is_the_weighted_mean_of_its_tokens(tmp_path, denominator, sizes):
    rows = with_weights()
    args = {"per_device_train_batch_size": sizes[0], "gradient_accumulation_steps": sizes[1], "max_steps": 1}
    done = run(tmp_path, "token_column", {"denominator": denominator}, rows, **args)
    assert losses(done)[0] == pytest.approx(expected(rows, denominator), rel=2e-5)


def test_a_weight_of_zero_is_a_label_of_none(tmp_path):
    zero = [[float(t % 3 != 0) for t in range(len(ROWS[i]["input_ids"]))] for i in range(12)]
    masked = [
        row | {"labels": [y if z else IGNORED for y, z in zip(row["labels"], own, strict=True)]}
        for row, own in zip([dict(ROWS[i]) for i in range(12)], zero, strict=True)
    ]
    ours = run(tmp_path / "o", "token_column", {}, with_weights(weights=zero))
    plain = run(tmp_path / "p", "custom", {}, datasets.Dataset.from_list(masked), keys={"weight_objective": "token"})
    np.testing.assert_allclose(losses(ours), losses(plain), rtol=1e-5)


@pytest.mark.parametrize(
    ("weights", "params", "message"),
    [
        ({2: [1.0]}, {}, "row 2 has 1 numbers under 'token_weights' and"),
        ({4: None}, {}, "row 4 has no weights under 'token_weights' -> give it some, or set default"),
        ({5: "negative"}, {}, "row 5 has the weight -1.0 -> give numbers from 0"),
        ({5: "nan"}, {}, "row 5 has the weight nan"),
        ({}, {"column": "token_wieghts"}, r"has no column 'token_wieghts' but .* -> did you mean 'token_weights'"),
        ({}, {"denominator": "sum"}, "denominator of the token_column weighter: found 'sum', allowed: weights, tokens"),
        ({}, {"default": -1}, "default of the token_column weighter: found -1"),
        ("zero", {}, "every weight under 'token_weights' of a token that is trained on is 0"),
    ],
)
def test_weights_that_are_not_one_for_each_token_are_refused_by_row(weights, params, message):
    given = [[1.0] * len(ROWS[i]["input_ids"]) for i in range(12)]
    if weights == "zero":
        given = [[0.0] * len(own) for own in given]
    else:
        for row, own in weights.items():
            number = {"negative": -1.0, "nan": float("nan")}.get(own) if isinstance(own, str) else None
            given[row] = [*given[row][1:], number] if isinstance(own, str) else own
    with pytest.raises(ConfigError, match=message):
        TokenColumnWeighter(with_weights(weights=given), **params)


def test_weights_of_questions_alone_are_refused_where_these_are_not_trained_on():
    asked = [[float(label == IGNORED) for label in ROWS[i]["labels"]] for i in range(12)]
    assert max(map(max, asked)) == 1
    with pytest.raises(ConfigError, match="of a token that is trained on is 0, so nothing would be learnt"):
        TokenColumnWeighter(with_weights(weights=asked))
    asked[11][-1] = 0.5  # the last token of the last row
    TokenColumnWeighter(with_weights(weights=asked))
    unlabelled = datasets.Dataset.from_list([{"input_ids": [1, 2, 3], "token_weights": [0.0, 1.0, 0.0]}])
    TokenColumnWeighter(unlabelled)  # the collator makes labels of all tokens


def test_a_row_without_weights_has_the_default(tmp_path):
    given = [[1.0] * len(ROWS[i]["input_ids"]) for i in range(12)]
    given[4] = None
    weighter = TokenColumnWeighter(with_weights(weights=given), default=0.5)
    assert set(weighter.weights_of(np.array([4]))[0].tolist()) == {0.5}
    assert set(weighter.weights_of(np.array([3]))[0].tolist()) == {1.0}


def test_a_column_is_read_through_several_sources_and_a_resumed_run_has_the_same():
    mixed = MixedSources({"a": with_weights(), "b": with_weights(TokenRows(5, seed=3))})
    weighter = TokenColumnWeighter(mixed)
    found = weighter.weights_of(np.array([13, 2]))
    assert found[0].tolist() == mixed.sources[1][1]["token_weights"]
    assert found[1].tolist() == mixed.sources[0][2]["token_weights"]
    weighter.load_state_dict(weighter.state_dict())
    with pytest.raises(CheckpointError, match="the weights of tokens under 'token_weights' differ"):
        weighter.load_state_dict(TokenColumnWeighter(with_weights()).state_dict())


def test_lists_of_several_parts_are_one():
    parts = [with_weights(), with_weights(TokenRows(5, seed=3))]
    lists = TokenLists(parts, "token_weights")
    assert len(lists) == 17
    every = [own.tolist() for chunk in lists.chunks() for own in chunk]
    assert every == [own.tolist() for own in lists.of(np.arange(17))]
    assert [own.tolist() for own in lists.of(np.array([16, 0]))] == [every[16], every[0]]


# -- spans


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("plain", []),
        ("<think>a</think>b", [(0, 16, 0.25)]),
        ("x<think>a</think>b<think></think>", [(1, 17, 0.25), (18, 33, 0.25)]),
        ("x<think>cut", [(1, 11, 0.25)]),
        ("</think>b<think>", [(9, 16, 0.25)]),
        ("<think><think>a</think>b</think>", [(0, 23, 0.25)]),  # spans do not nest
        ("<code>a<think>b</think></code>c", [(0, 30, 2.0)]),  # what begins first counts
    ],
)
def test_the_stretches_of_a_text(text, found):
    assert span_runs(text, [("<think>", "</think>", 0.25), ("<code>", "</code>", 2.0)]) == found


def test_of_markers_that_begin_alike_the_longer_one_counts():
    assert span_runs("<a><b>x</b></a>", [("<a>", "</a>", 1.0), ("<a><b>", "</b>", 2.0)])[0] == (0, 11, 2.0)


def test_a_token_is_inside_where_one_of_its_characters_is():
    ends = np.cumsum([2, 3, 3, 1])
    assert token_weights_of([(4, 6, 0.5)], ends, 1.0).tolist() == [1.0, 0.5, 0.5, 1.0]
    assert token_weights_of([(2, 5, 0.5)], ends, 1.0).tolist() == [1.0, 0.5, 1.0, 1.0]
    assert token_weights_of([(0, 9, 0.0)], np.cumsum([0, 9]), 1.0).tolist() == [1.0, 0.0]  # of no character: outside


def test_stretches_that_are_trained_on_end_with_their_answer_and_their_document():
    labels = np.array([IGNORED, 1, 1, IGNORED, 2, 2, 2])
    none = np.empty(0)
    assert trained_stretches(labels, none, 7) == [(1, 3), (4, 7)]
    assert trained_stretches(labels, np.array([0, 1, 2, 3, 4, 0, 1]), 7) == [(1, 3), (4, 5), (5, 7)]
    assert trained_stretches(none, none, 3) == [(0, 3)]
    assert trained_stretches(none, none, 0) == []


def test_a_marker_counts_before_an_answer_only_right_before_it():
    spans = [("<think>", "</think>", 0.5)]
    assert marker_before("assistant:<think>\n", spans) == 8
    assert marker_before("write <think> first. assistant:", spans) == 0


def encoded(tokenizer, *parts):
    """A row of several parts, each with whether it is trained on."""
    ids, labels = [], []
    for text, trained in parts:
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += own
        labels += own if trained else [IGNORED] * len(own)
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


TEXTS = [
    [("use <think> tags: 1 + 1? ", False), ("<think>one and one</think>two", True)],
    [("no thought ", False), ("plain answer", True)],
    [("assistant: <think>\n", False), ("put by the template</think> six", True)],
    [("a? ", False), ("<think>cut off", True), (" b? ", False), ("nine", True)],
    [("ünïcode 🦊 思考 ", False), ("<think>🦊🦊 思考</think>é🦊", True)],
]


@pytest.mark.parametrize("row", range(len(TEXTS)))
def test_tokens_between_markers_have_their_weight_whatever_the_text(row):
    tokenizer = tiny_tokenizer()
    data = datasets.Dataset.from_list([encoded(tokenizer, *parts) for parts in TEXTS])
    weighter = SpansWeighter(data, tokenizer, between=THINK)
    found = weighter.weights_of(np.array([row]))[0]
    assert len(found) == len(data[row]["input_ids"])
    kept = [t for t in range(len(found)) if data[row]["labels"][t] != IGNORED]
    ids = np.array(data[row]["input_ids"])
    inside = tokenizer.decode(ids[[t for t in kept if found[t] == 0.25]]) if any(found[kept] == 0.25) else ""
    outside = tokenizer.decode(ids[[t for t in kept if found[t] == 1.0]]) if any(found[kept] == 1.0) else ""
    wanted = [
        ("<think>one and one</think>", "two"),
        ("", "plain answer"),
        ("put by the template</think>", " six"),
        ("<think>cut off", "nine"),
        ("<think>🦊🦊 思考</think>", "é🦊"),
    ][row]
    # a token over the edge belongs to the span: the pieces may differ by the characters of one token
    assert inside + outside == wanted[0] + wanted[1]
    assert inside.startswith(wanted[0])
    assert len(inside) - len(wanted[0]) <= 3


def test_the_log_says_once_how_many_tokens_are_weighed_apart(caplog):
    tokenizer = tiny_tokenizer()
    data = datasets.Dataset.from_list([encoded(tokenizer, *parts) for parts in TEXTS])
    with caplog.at_level(logging.INFO, logger="dataflex"):
        weighter = SpansWeighter(data, tokenizer, between=THINK)
        found = weighter.weights_of(np.arange(len(data)))
    trained = [np.array(labels) != IGNORED for labels in data["labels"]]
    apart = sum(int(((own == 0.25) & kept).sum()) for own, kept in zip(found, trained, strict=True))
    every = sum(int(kept.sum()) for kept in trained)
    (said,) = [record.getMessage() for record in caplog.records if "trained on apart" in record.getMessage()]
    share = f"{100 * apart / every:.1f} %"
    assert said == f"spans: weighs {apart} of the {every} tokens that are trained on apart, {share}"


def test_the_texts_of_tokens_make_up_the_text_where_characters_have_several_tokens():
    tokenizer = tiny_tokenizer()
    texts = TokenTexts(tokenizer)
    for text in ("plain", "🦊🦊 思考 é", "", " a  b\n\nc 🦊"):
        ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)
        whole, ends = texts.of(ids, 0)
        assert whole == tokenizer.decode(ids.tolist())
        assert len(ends) == len(ids)
        assert (np.diff(ends) >= 0).all()
        assert not len(ids) or ends[-1] == len(whole)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"between": None}, r"between of the spans weighter: found None, allowed: a list such as \[\{start: <think>"),
        (
            {"between": [{"start": "<think>"}]},
            r"between\[0\] of the spans weighter: found .*, allowed: a mapping with end",
        ),
        (
            {"between": [THINK[0] | {"start": ""}]},
            r"between\[0\].start of the spans weighter: found '', allowed: a text",
        ),
        ({"between": [THINK[0] | {"weight": -1}]}, r"between\[0\].weight of the spans weighter: found -1"),
        ({"between": [THINK[0] | {"weight": 0}], "default": 0}, "every weight is 0"),
        ({"between": THINK, "denominator": 1}, "denominator of the spans weighter: found 1"),
        ({"between": [THINK[0] | {"start": "<thought>"}]}, "in no row of the train dataset <thought> begins a span"),
    ],
)
def test_markers_that_are_wrong_or_nowhere_are_refused(params, message):
    tokenizer = tiny_tokenizer()
    data = datasets.Dataset.from_list([encoded(tokenizer, *parts) for parts in TEXTS])
    with pytest.raises(ConfigError, match=message):
        SpansWeighter(data, tokenizer, **params)


def test_without_a_tokenizer_markers_are_refused():
    with pytest.raises(ConfigError, match="tokenizer of the spans weighter: the trainer has none"):
        SpansWeighter(ROWS, None, between=THINK)


def test_spans_of_a_weight_of_one_are_the_plain_run(tmp_path):
    tokenizer = tiny_tokenizer()
    data = datasets.Dataset.from_list([encoded(tokenizer, *parts) for parts in TEXTS])
    weighter = SpansWeighter(data, tokenizer, between=[THINK[0] | {"weight": 1.0}])
    assert all((own == 1).all() for own in weighter.weights_of(np.arange(5)))
    with pytest.raises(CheckpointError, match="between, default: they differ"):
        weighter.load_state_dict(SpansWeighter(data, tokenizer, between=THINK).state_dict())
