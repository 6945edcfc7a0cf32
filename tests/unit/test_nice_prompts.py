"""Prompts and references come out of tokenised rows as they went in."""

from __future__ import annotations

import pytest
from dataflex.core.errors import ComponentError
from dataflex.scoring.target_rows import whole_rows
from dataflex.testing import tiny_tokenizer
from dataflex_selectors.nice.prompts import read_prompts

MASKED = -100


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def row(*parts):
    """A row of (tokens, has labels) parts."""
    tokens = [token for part, _ in parts for token in part]
    labels = [token if labelled else MASKED for part, labelled in parts for token in part]
    return {"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels}


def read(tokenizer, rows, only=None):
    return read_prompts("eval", rows, range(len(rows)) if only is None else only, tokenizer)


def test_a_row_is_split_at_its_first_label_and_decoded_without_special_tokens(tokenizer):
    question, answer = encode(tokenizer, "What is 2 + 3?"), [*encode(tokenizer, " It is 5."), tokenizer.eos_token_id]
    (found,) = read(tokenizer, [row(([tokenizer.bos_token_id, *question], False), (answer, True))])
    assert found.tokens == (tokenizer.bos_token_id, *question)
    assert found.reference_tokens == tuple(answer)
    assert (found.text, found.reference) == ("What is 2 + 3?", "It is 5.")


def test_padding_behind_the_answer_is_no_part_of_it(tokenizer):
    (found,) = read(tokenizer, [row(([5, 6], False), ([7, 8], True), ([0, 0], False))])
    assert (found.tokens, found.reference_tokens) == ((5, 6), (7, 8))


def test_of_several_turns_the_first_is_taken(tokenizer):
    (found,) = read(tokenizer, [row(([5, 6], False), ([7, 8], True), ([9], False), ([10, 11], True))])
    assert (found.tokens, found.reference_tokens) == ((5, 6), (7, 8))


def test_rows_of_predict_with_generate_are_read_too(tokenizer):
    rows = [
        {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [9, 10]},
        {"input_ids": [5, 6], "attention_mask": [1, 1], "labels": [9, 10]},  # of equal length by chance
    ]
    found = read(tokenizer, whole_rows(rows))
    assert [(p.tokens, p.reference_tokens) for p in found] == [((5, 6, 7), (9, 10)), ((5, 6), (9, 10))]


def test_rows_without_a_prompt_or_an_answer_are_left_out_and_the_others_keep_their_number(tokenizer):
    rows = [row(([5, 6], True)), row(([5, 6], False)), row(([5, 6], False), ([7], True))]
    (found,) = read(tokenizer, rows)
    assert (found.row, found.tokens) == (2, (5, 6))


def test_only_the_rows_asked_for_are_read(tokenizer):
    rows = [row(([number], False), ([7], True)) for number in range(5, 9)]
    assert [prompt.row for prompt in read(tokenizer, rows, only=[3, 1])] == [3, 1]


@pytest.mark.parametrize("parts", [[([5, 6], True)], [([5, 6], False)]], ids=["no prompt", "no answer"])
def test_a_set_without_any_prompt_is_refused(tokenizer, parts):
    with pytest.raises(ComponentError, match=r"evaluation set 'eval' has a prompt, .* -> .*leave out train_on_prompt"):
        read(tokenizer, [row(*parts)] * 3)
