"""Ifd divides the loss of an answer behind its prompt by that of the answer alone, and takes the highest of a band."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.kinds import SELECTOR
from dataflex.discovery.component_classes import find
from dataflex.scoring import model_beside
from dataflex.testing import TokenRows, tiny_model, tiny_tokenizer
from dataflex_selectors.ifd import IfdSelector, in_band, instruction_following_difficulty
from dataflex_selectors.parts.answer_rows import AnswersAlone, answers_of, header_of
from dataflex_selectors.parts.other_model import ReencodedRows, parts, rows_for
from every_component import run_objects
from golden_numbers import golden_cases

HEADER = [5, 6, 7]
CASES = golden_cases("ifd")


def row(*turns):
    """Returns a row of turns, each a prompt and an answer."""
    ids = [token for prompt, answer in turns for token in [*prompt, *answer]]
    labels = [label for prompt, answer in turns for label in [-100] * len(prompt) + list(answer)]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def made(count=14, seed=0):
    """Returns rows whose prompts end with the header; one has two turns, and the last four are odd ones."""
    draw = np.random.default_rng(seed)

    def tokens(least=2, most=9):
        return draw.integers(10, 120, draw.integers(least, most)).tolist()

    rows = [row((tokens() + HEADER, tokens())) for _ in range(count - 5)]
    rows.append(row((tokens() + HEADER, tokens()), (tokens() + HEADER, tokens())))
    rows.append(row((tokens() + HEADER, [])))  # an answer that was cut off
    rows.append(row(([], tokens())))  # nothing before it
    rows.append(row((tokens() + HEADER, [9])))  # one token
    rows.append(row((tokens() + HEADER, tokens(), ([], []))[:2]))
    return rows


@pytest.fixture(scope="module")
def rows():
    return made()


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def build(rows, folder="unused", **params):
    selector = IfdSelector(**run_objects(rows, folder=folder), **params)
    selector.bind("ifd", 7)
    return selector


def context(update=0):
    return UpdateContext(update, 6, step=10 * update, total_steps=60, learning_rate=1e-3, optimizer=None)


def number(value):
    return np.nan if value is None or value == "nan" else float(value)


def numbers(values):
    return np.array([number(value) for value in values], dtype=np.float64)


def taken(scores, count, **params):
    """Returns the rows that the selector takes, best first, of given scores; all where there are fewer in the band."""
    selector = build(TokenRows(len(scores)), ratio=params.pop("ratio", "perplexity"), **params)
    selector.scores = lambda *_, **__: in_band(scores, selector.least, selector.most, selector.ratio)
    inside = int(np.isfinite(selector.scores()).sum())
    return selector.select(None, 0, min(count, inside), context=context()).indices.tolist()


def brute(model, rows, ratio, header):
    """Returns the IFD of each row in float64, one answer at a time."""

    def losses(ids, learnt):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
        each = -logits[torch.arange(len(ids) - 1), torch.tensor(ids[1:], dtype=torch.long)]
        return [float(each[place - 1]) for place in learnt if place > 0]

    found = []
    for each in rows:
        ids, labels = each["input_ids"], each["labels"]
        given = losses(ids, [place for place, label in enumerate(labels) if label != -100])
        alone = []
        for start, end in parts(np.array(labels) != -100):
            if start > 0 and labels[start] != -100:
                before = ids[max(0, start - header) : start] if header else []
                alone += losses(before + ids[start:end], range(len(before), len(before) + end - start))
        if not given or not alone:
            found.append(np.nan)
            continue
        given, alone = np.mean(given), np.mean(alone)
        found.append(given / alone if ratio == "loss" else math.exp(given - alone))
    return np.array(found)


def test_the_entry_point_leads_to_the_class():
    assert find(SELECTOR, "ifd") is IfdSelector


@pytest.mark.parametrize("case", [c for c in CASES if c["kind"] == "superfiltering_pipeline"], ids=lambda c: c["name"])
def test_the_ratio_of_perplexities_and_the_choice_are_those_of_superfiltering(case):
    given, alone = (numbers(case["outputs"][key]) for key in ("loss_with_instruction", "loss_alone"))
    found = instruction_following_difficulty(given, alone, "perplexity")
    np.testing.assert_allclose(found, numbers(case["outputs"]["ifd_ppl"]), rtol=1e-8)
    chosen = taken(found, case["params"]["number_wanted"], most=float(case["params"]["filter_threshold"]))
    assert chosen == case["outputs"]["selected_best_first"]


@pytest.mark.parametrize("case", [c for c in CASES if c["kind"] == "superfiltering_select"], ids=lambda c: c["name"])
def test_the_choice_by_threshold_is_that_of_superfiltering(case):
    scores = numbers(case["inputs"]["ifd_ppl"])
    chosen = taken(scores, case["params"]["number_wanted"], most=float(case["params"]["filter_threshold"]))
    assert chosen == case["outputs"]["selected_best_first"]


@pytest.mark.parametrize("case", [c for c in CASES if c["kind"] == "superfiltering_do_ifd"], ids=lambda c: c["name"])
def test_the_band_is_that_of_the_script_for_diversity_but_for_rows_without_a_score(case):
    scores, params = numbers(case["inputs"]["ifd_ppl"]), case["params"]
    wanted = case["outputs"]["selected_in_order"]
    wanted = [place for place in wanted if not math.isnan(scores[place])]  # theirs takes rows without a score last
    most = params["ifd_upper"] or None
    least = 0.0 if params["ifd_num"] else params["ifd_lower"]  # with a number, theirs ignores the lower bound
    chosen = taken(scores, params["ifd_num"] or len(scores), least=least, most=most)
    assert (chosen if params["ifd_num"] else sorted(chosen)) == wanted


@pytest.mark.parametrize("case", [c for c in CASES if c["kind"].startswith("cherry")], ids=lambda c: c["name"])
def test_the_ratio_of_losses_and_the_choice_are_those_of_cherry_llm(case):
    """Rows that theirs cuts are left out: its two means are then over different tokens, which ours never are."""
    params, given = case["params"], case["inputs"]["rows"]
    means = [
        [np.mean(each[key]) if each[key] else np.nan for each in given]
        for key in ("answer_losses_with_instruction", "answer_losses_alone")
    ]
    found = instruction_following_difficulty(np.array(means[0]), np.array(means[1]), "loss")
    banded = in_band(found, 0.0, 1.0, "loss")
    theirs = numbers(case["outputs"]["ifd_score"])
    whole = [
        place
        for place, each in enumerate(given)
        if each["n_prompt_tokens"] + len(each["answer_losses_with_instruction"]) + 5 <= params["max_length"]
    ]
    for place in whole:
        if not math.isnan(theirs[place]):
            assert found[place] == pytest.approx(theirs[place], rel=1e-8)
        else:
            assert not np.isfinite(banded[place])
    if len(whole) < len(given):
        return
    survive = int(np.isfinite(banded).sum())
    rate = params["sample_rate"] * (survive if case["kind"] == "cherry_data_by_IFD" else len(given))
    count = params["sample_number"] or int(rate + 1e-9)
    wanted = case["outputs"]["selected_in_order"]
    if count == 0:
        assert len(wanted) == survive, "no row is asked for, and their slice keeps all of them"
        return
    chosen = taken(found, count, ratio="loss")
    assert sorted(found[chosen]) == pytest.approx(sorted(found[wanted])), "equal scores apart, the same rows"
    if len(set(found[np.isfinite(banded)])) == survive:
        assert set(chosen) == set(wanted)


def test_of_equal_scores_the_earlier_row_is_taken():
    assert taken(np.array([0.5, 0.9, 0.9, 0.7]), 1) == [1]


def test_a_row_whose_score_is_exactly_the_upper_end_stays_by_losses_and_goes_by_perplexities():
    scores = np.array([1.0, 0.5])
    assert in_band(scores, 0.0, 1.0, "loss").tolist() == [1.0, 0.5]
    assert in_band(scores, 0.0, 1.0, "perplexity").tolist() == [-np.inf, 0.5]


def test_large_losses_do_not_overflow_and_a_loss_of_zero_gives_no_number():
    given, alone = np.array([800.0, 900.0, 1.0, 0.0]), np.array([801.0, 1.0, 0.0, 0.0])
    perplexities = instruction_following_difficulty(given, alone, "perplexity")
    assert perplexities[0] == pytest.approx(math.exp(-1))
    assert perplexities[1] == np.inf
    losses = instruction_following_difficulty(given, alone, "loss")
    assert losses[2] == np.inf
    assert math.isnan(losses[3])
    assert in_band(losses, 0.0, None, "loss")[2] == -np.inf


def test_answers_are_the_stretches_with_labels_behind_a_prompt():
    assert answers_of(np.array([-100, -100, 4, 5, -100, 6])) == [(2, 4), (5, 6)]
    assert answers_of(np.array([4, 5, -100, 6])) == [(3, 4)]
    assert answers_of(np.array([], dtype=np.int64)) == []


def test_the_header_is_what_all_prompts_end_with(rows):
    assert header_of(rows) == HEADER
    assert header_of([row(([1, 2], [3])), row(([4, 5], [6]))]) == []
    assert header_of([row(([1, 2], [3]))]) == [1, 2]


@pytest.mark.parametrize("ratio", ["loss", "perplexity"])
@pytest.mark.parametrize("header", [None, 0, 2])
def test_scores_are_those_of_one_answer_at_a_time(rows, model, ratio, header):
    selector = build(rows, ratio=ratio, header=header, most=None)
    found = selector.scores(model, 0, context=context())
    wanted = brute(model, rows, ratio, len(HEADER) if header is None else header)
    np.testing.assert_allclose(found, wanted, rtol=2e-5)
    assert np.isnan(found[[-4, -3]]).all(), "an answer that was cut off, and one without a prompt"
    assert np.isnan(found[-2]) == (header == 0), "one token alone is not predicted, behind a header it is"


@pytest.mark.parametrize("budget", [16, 64, None])
def test_scores_do_not_depend_on_the_batches(rows, model, budget):
    alone = build(rows, most=None, token_budget=1).scores(model, 0, context=context())
    np.testing.assert_allclose(
        build(rows, most=None, token_budget=budget).scores(model, 0, context=context()), alone, rtol=2e-5
    )


def test_a_start_token_stands_before_the_answer_where_the_row_begins_with_one(model):
    tokenizer = tiny_tokenizer()
    start = tokenizer.bos_token_id
    assert start is not None
    begun = [row(([start, 30, *HEADER], [40, 41])), row(([30, 31, *HEADER], [42, 43]))]
    alone = AnswersAlone(begun, np.arange(2), HEADER, start, "")
    assert alone[0]["input_ids"] == [start, *HEADER, 40, 41]
    assert alone[1]["input_ids"] == [*HEADER, 42, 43]
    assert alone[0]["labels"] == [-100] * 4 + [40, 41]
    assert alone.predicted.tolist() == [2, 2]
    assert alone.row_lengths().tolist() == [6, 5]


def test_the_rows_of_the_band_with_the_highest_scores_are_taken(rows, model):
    selector = build(rows, most=None)
    scores = selector.scores(model, 0, context=context())
    taken = selector.select(model, 0, 4, context=context())
    assert taken.indices.tolist() == np.argsort(np.nan_to_num(-scores, nan=np.inf), kind="stable")[:4].tolist()
    np.testing.assert_array_equal(taken.scores, scores[taken.indices])
    assert len(taken.candidates) == len(rows)


def test_rows_drawn_by_their_scores_are_others_at_the_next_update(rows, model):
    selector = build(rows, most=None, mode="sample")
    drawn = [selector.select(model, 0, 5, context=context(update)).indices.tolist() for update in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]


def test_rows_without_a_score_are_counted_in_the_log(rows, model, caplog):
    with caplog.at_level(logging.INFO, logger="dataflex"):
        build(rows).scores(model, 0, context=context())
    assert f"2 of {len(rows)} rows have no IFD and are never taken" in caplog.text


def test_a_narrow_band_that_holds_too_few_rows_is_refused_with_the_way_out(rows, model):
    selector = build(rows, least=0.1, most=0.2)
    with pytest.raises(
        ComponentError,
        match=r"only 0 of 14 have an IFD above 0\.1 and up to 0\.2 -> a wider band",
    ):
        selector.select(model, 0, 3, context=context())


def test_rows_without_prompts_are_refused_before_training(model):
    selector = build(TokenRows(6, prompt=0))
    with pytest.raises(ComponentError, match="have an answer behind a prompt"):
        selector.check_run(model, RunAhead(updates=1, total_steps=4, most_rows=2))
    with pytest.raises(ComponentError, match="no row has an answer behind a prompt"):
        selector.scores(model, 0, context=context())


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"ratio": "losses"}, "ratio of the ifd selector: found 'losses', allowed: loss, perplexity"),
        ({"least": 1.0}, "most of the ifd selector: found 1.0, and least is 1.0 -> most must lie above least"),
        ({"most": 0}, "most of the ifd selector: found 0, allowed: a number above 0"),
        ({"header": -1}, "header of the ifd selector: found -1, allowed: a whole number of at least 0"),
        ({"mode": "quota"}, "mode of the ifd selector: found 'quota', allowed: topk, sample"),
        ({"reference_model": "./nowhere"}, "reference_model of the ifd selector: there is no folder"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(rows, params, said):
    with pytest.raises(ConfigError) as caught:
        build(rows, **params)
    assert said in str(caught.value)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another model with the run's tokenizer."""
    folder = tmp_path_factory.mktemp("other")
    tiny_model(seed=3).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_another_model_scores_once_and_its_scores_resume(rows, model, other, tmp_path, monkeypatch):
    selector = build(rows, tmp_path, reference_model=other, tokenizer=tiny_tokenizer(), most=None)
    found = selector.scores(model, 0, context=context())
    np.testing.assert_allclose(found, brute(tiny_model(seed=3), rows, "loss", 3), rtol=2e-5)
    resumed = build(rows, tmp_path, reference_model=other, tokenizer=tiny_tokenizer(), most=None)
    resumed.load_state_dict(selector.state_dict())
    monkeypatch.setattr(model_beside, "load_whole", None)  # would raise
    np.testing.assert_array_equal(resumed.scores(model, 5, context=context(1)), found)
    np.testing.assert_array_equal(selector.scores(model, 5, context=context(1)), found)


def test_a_model_that_is_not_there_is_told_in_one_line_with_the_way_out_and_without_a_traceback(rows, model, tmp_path):
    selector = build(rows, tmp_path, reference_model="none/such", tokenizer=tiny_tokenizer())
    with pytest.raises(ComponentError, match=r"none/such cannot be loaded: .* -> name a folder") as said:
        selector.scores(model, 0, context=context())
    assert "\n" not in str(said.value)
    assert said.value.__cause__ is None


def test_a_model_with_another_tokenizer_reads_the_same_texts_and_labels():
    run = tiny_tokenizer()
    texts = [("translate this", "to that"), ("sort these", "in that order")]
    encoded = [
        row((run(prompt)["input_ids"], run(answer, add_special_tokens=False)["input_ids"])) for prompt, answer in texts
    ]

    class Letters:
        bos_token_id = 1

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [1] * add_special_tokens + [ord(letter) for letter in text]}

    seen = ReencodedRows(encoded, run, Letters(), 1000)
    for (prompt, answer), each in zip(texts, seen, strict=True):
        learnt = [chr(label) for label in each["labels"] if label != -100]
        assert "".join(learnt).strip() == answer
        assert "".join(map(chr, each["input_ids"][1:])).replace(answer, "").strip() == prompt
        assert each["input_ids"][0] == 1
        assert each["labels"][0] == -100
    assert len(ReencodedRows(encoded, run, Letters(), 5)[0]["input_ids"]) == 5


def test_nothing_of_the_run_is_disturbed(rows, model):
    model.train()
    state = torch.get_rng_state()
    build(rows, most=None).scores(model, 0, context=context())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_a_folder_without_a_tokenizer_has_the_tokens_of_the_run(rows, tmp_path):
    """For such a folder transformers makes up a tokenizer, in whose tokens the rows would be encoded again."""
    tiny_model(seed=3).save_pretrained(tmp_path)
    dataset, tokenizer = rows_for(str(tmp_path), tiny_model(seed=3), rows, own := tiny_tokenizer())
    assert dataset is rows
    assert tokenizer is own
