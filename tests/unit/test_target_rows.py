"""Evaluation rows are read in one form by whatever aims at them, and those that say nothing are left out."""

from __future__ import annotations

import logging

import datasets
import numpy as np
import pytest
import torch
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import KINDS, SELECTOR, WEIGHTER
from dataflex.discovery.component_classes import find
from dataflex.discovery.construct import constructor_parameters
from dataflex.rows.columns import labelled_rows
from dataflex.scoring import row_lengths
from dataflex.scoring.target_rows import JoinedRows, read_target, whole_rows, whole_sets
from dataflex.testing import TokenRows, pad_collate, tiny_model
from dataflex.train.selector.base_selector import Selector
from every_component import asking_for, installed, made, scores
from weighted_run import weighted

TO_TARGET = asking_for(SELECTOR, "eval_dataset")
EMPTY = {"input_ids": [], "attention_mask": [], "labels": []}
MASKED = {"input_ids": [7, 8, 9], "attention_mask": [1] * 3, "labels": [-100] * 3}
FIRST = {"input_ids": [7, 8, 9], "attention_mask": [1] * 3, "labels": [7, -100, -100]}  # predicted of nothing


def listed(rows: TokenRows) -> list[dict]:
    return [rows[i] for i in range(len(rows))]


def apart(row: dict) -> dict:
    """As LLaMA-Factory makes it for ``predict_with_generate``."""
    cut = sum(label == -100 for label in row["labels"])
    return {
        "input_ids": row["input_ids"][:cut],
        "attention_mask": row["attention_mask"][:cut],
        "labels": row["labels"][cut:],
    }


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return listed(TokenRows(20, vocab_size=300, lengths=range(5, 16), seed=2))


@pytest.fixture(scope="module")
def target() -> list[dict]:
    return listed(TokenRows(6, vocab_size=300, lengths=range(8, 16), prompt=4, seed=3))


@pytest.fixture
def model() -> torch.nn.Module:
    return tiny_model(vocab_size=512)


# --- the two forms


def test_rows_that_are_apart_are_put_together_and_others_are_the_dataset_itself(target):
    for given in (target, datasets.Dataset.from_list(target)):
        assert whole_rows(given) is given
    cut = [apart(row) for row in target]
    for given in (
        cut,
        datasets.Dataset.from_list(cut),
        datasets.Dataset.from_list(cut).with_transform(lambda batch: batch),
    ):
        found = whole_rows(given)
        assert [dict(found[i]) for i in range(6)] == target
        assert [dict(row) for row in found.__getitems__([4, 1])] == [target[4], target[1]]
        assert row_lengths(found).tolist() == [len(row["input_ids"]) for row in target]
        assert whole_rows(found) is found


class Counting:
    """A list of rows that counts how often one is read."""

    def __init__(self, rows):
        self.rows, self.read = rows, 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        self.read += 1
        return self.rows[row]


def test_a_row_that_is_made_when_it_is_read_is_made_once_for_each_question(rows, target):
    counting = Counting([*rows, {"input_ids": [], "labels": []}])
    assert labelled_rows(counting).tolist() == list(range(len(rows)))
    assert counting.read == len(counting)

    counting = Counting(rows)
    read_target(counting)
    assert counting.read == 2 * len(rows)  # its form, and its labels

    counting = Counting([apart(row) for row in target])
    whole = whole_rows(counting)
    assert row_lengths(whole).tolist() == [len(row["input_ids"]) for row in whole_rows([apart(row) for row in target])]
    assert counting.read == len(target) + 1  # and the first, for its columns


def test_one_length_for_prompt_and_answer_is_still_two_texts():
    even = {"input_ids": [5, 6], "attention_mask": [1, 1], "labels": [8, 9]}
    assert isinstance(whole_rows([even] * 3), JoinedRows)
    trained_on_prompt = {"input_ids": [5, 6], "attention_mask": [1, 1], "labels": [5, 6]}
    assert whole_rows([trained_on_prompt]) == [trained_on_prompt]
    echo = [trained_on_prompt, {"input_ids": [5, 6, 7], "attention_mask": [1] * 3, "labels": [8]}]
    assert whole_rows(echo)[0]["labels"] == [-100, -100, 5, 6]  # the others of the set say what it is


def test_a_label_of_another_token_is_no_second_text():
    """LLaMA-Factory's ``efficient_eos`` puts the end of an answer on the first token of the next turn."""
    turns = {"input_ids": [5, 6, 7, 8], "attention_mask": [1] * 4, "labels": [-100, 6, 2, 8]}
    assert whole_rows([turns]) == [turns]


def test_what_is_no_table_of_rows_is_handed_on(target):
    stream = datasets.Dataset.from_list(target).to_iterable_dataset()
    assert whole_sets(None) is None
    assert whole_sets(stream) is stream
    assert whole_sets({"a": [apart(row) for row in target], "b": target})["a"][0] == target[0]


@pytest.mark.parametrize("name", TO_TARGET)
def test_rows_of_both_forms_are_refused_by_every_selector(name, rows, target):
    mixed = [target[0], apart(target[1])]
    with pytest.raises(
        ConfigError, match=r"of two forms: row 1 has \d+ labels for 4 tokens.*row 0 has a label for each"
    ):
        made(SELECTOR, name, dataset=rows, eval_dataset=mixed)


def test_a_column_of_the_prompts_tokens_cannot_be_continued(target):
    positions = [apart(row) | {"position_ids": list(range(4))} for row in target]
    with pytest.raises(ConfigError, match="column 'position_ids' has a number for each token of the prompt alone"):
        whole_rows(positions)
    images = [apart(row) | {"images": None, "tools": ["a", "b", "c", "d"]} for row in target]
    assert whole_rows(images)[0]["tools"] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("name", TO_TARGET)
@pytest.mark.parametrize("sets", [1, 2])
def test_every_selector_scores_as_if_they_had_never_been_apart(name, sets, rows, target, model):
    def evaluation(change):
        some = [change(row) for row in target]
        return some if sets == 1 else {"a": some[:3], "b": some[3:]}

    plain = scores(made(SELECTOR, name, dataset=rows, eval_dataset=evaluation(dict)), model)
    found = scores(made(SELECTOR, name, dataset=rows, eval_dataset=evaluation(apart)), model)
    np.testing.assert_array_equal(found, plain)
    assert np.isfinite(plain).all()


WEIGHTERS = ["adapt", "joint_update_aware"]


def test_every_weighter_and_mixer_with_a_target_is_known_here():
    found = {kind.name: asking_for(kind, "eval_dataset", "mixer_eval_dataset") for kind in KINDS}
    assert found == {"selector": TO_TARGET, "mixer": ["doge", "dynamic_moe", "odm"], "order": [], "weighter": WEIGHTERS}


@pytest.mark.parametrize("name", asking_for(WEIGHTER, "eval_dataset"))
def test_every_weighter_weighs_as_if_they_had_never_been_apart(name, rows, target, tmp_path, model):
    losses = []
    for change in (dict, apart):
        trainer = weighted(
            tmp_path,
            name,
            None,
            rows,
            model=tiny_model(vocab_size=512),
            target=[change(row) for row in target],
            max_steps=3,
        )
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert len(losses[0]) == 3
    assert losses[0] == losses[1]


# --- rows that say nothing


def shifted(rows: list[dict]) -> list[dict]:
    return [EMPTY, *rows[:2], MASKED, *rows[2:], FIRST]


@pytest.mark.parametrize("name", TO_TARGET)
def test_every_selector_leaves_out_evaluation_rows_that_say_nothing(name, rows, target, model, caplog):
    plain = scores(made(SELECTOR, name, dataset=rows, eval_dataset=target), model)
    with caplog.at_level(logging.WARNING, logger="dataflex"):
        selector = made(SELECTOR, name, dataset=rows, eval_dataset=shifted(target))
        found = scores(selector, model)
    np.testing.assert_array_equal(found, plain)
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert said == ["evaluation set 'eval': 3 of 9 rows have no token or no label and are left out"]


@pytest.mark.parametrize("name", TO_TARGET)
def test_nothing_but_such_rows_is_an_error_before_anything_is_trained(name, rows, target):
    with pytest.raises(ConfigError, match=rf"eval_dataset of the {name} selector: no row .* 'b' has a token"):
        made(SELECTOR, name, dataset=rows, eval_dataset={"a": target, "b": [EMPTY, MASKED]})


@pytest.mark.parametrize("name", asking_for(WEIGHTER, "eval_dataset"))
def test_every_weighter_leaves_them_out_too(name, rows, target, tmp_path):
    weights = []
    for given in (target, {"a": shifted(target), "b": [EMPTY]}):
        trainer = weighted(tmp_path, name, None, rows, model=tiny_model(vocab_size=512), target=given, max_steps=2)
        trainer.train()
        weights.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert weights[0] == weights[1]
    with pytest.raises(ConfigError, match=f"eval_dataset of the {name} weighter: no row"):
        weighted(tmp_path, name, None, rows, target=[EMPTY, MASKED])


@pytest.mark.parametrize("token_budget", [5, None])  # with 5, rows without tokens make a batch of their own
@pytest.mark.parametrize("name", installed(SELECTOR))
def test_a_train_row_without_tokens_is_never_chosen_and_has_no_score(name, token_budget, rows, target, model, tmp_path):
    given = [EMPTY, *rows, EMPTY, EMPTY]
    params = {"column": "irreducible"} if name == "rho_loss" else {}
    if "token_budget" in constructor_parameters(find(SELECTOR, name))[0]:
        params["token_budget"] = token_budget
    if name == "rho_loss":
        given = [row | {"irreducible": 1.0} for row in given]
    if name == "scores":
        pytest.skip("takes the numbers of a file")
    runtime = {"eval_dataset": target} if name in TO_TARGET else {}
    selector = made(SELECTOR, name, params, dataset=given, cache_dir=str(tmp_path), **runtime)
    if scores_rows(selector) and not selector.takes_rewards:
        found = scores(selector, model)
        assert np.flatnonzero(np.isnan(found)).tolist() == [0, 21, 22]
        assert np.isfinite(found[1:21]).all()


@pytest.mark.parametrize("name", installed(SELECTOR))
def test_a_selector_that_puts_batches_through_the_model_says_so(name, rows, target, model, tmp_path):
    if name == "scores":
        pytest.skip("takes the numbers of a file")
    batches = []

    def collate(given):
        batches.append(len(given))
        return pad_collate(given)

    given = [row | {"irreducible": 1.0} for row in rows]
    params = {"column": "irreducible"} if name == "rho_loss" else {}
    runtime = {"eval_dataset": target} if name in TO_TARGET else {}
    runtime |= {"dataset": given, "data_collator": collate, "cache_dir": str(tmp_path)}
    selector = made(SELECTOR, name, params, **runtime)
    if selector.takes_seen or selector.takes_rewards:
        pytest.skip("takes the losses or rewards of training")
    if scores_rows(selector):
        scores(selector, model)
    else:
        selector.select(model=model, step_id=3, num_samples=4, context=UpdateContext(0, 1, 3, 9, 1e-3, None))
    assert bool(batches) == selector.reads_batches


def scores_rows(selector) -> bool:
    return type(selector).scores is not Selector.scores
