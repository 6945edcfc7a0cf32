"""Rewards say what they are documented to say: text against the reference, and a reward model of one's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataflex.core.errors import ConfigError
from dataflex.testing import tiny_tokenizer
from dataflex_selectors.nice.reward_model import RewardModel
from dataflex_selectors.nice.rewards import Answer, contains, exact_match, normalized
from transformers import LlamaConfig, LlamaForSequenceClassification


def answers(*pairs):
    return [Answer("a question", text, reference) for text, reference in pairs]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The  Answer:\n42. ", "the answer 42"),
        ("STRASSE", "strasse"),
        ("straße", "strasse"),
        ("x\u00b2", "x2"),
        ("\u201cyes\u201d", "\u201cyes\u201d"),
        ("?!", ""),
    ],
)
def test_normalising_drops_case_ascii_punctuation_and_white_space(text, expected):
    assert normalized(text) == expected


def test_exact_match_is_of_the_normalised_texts():
    pairs = answers(("Paris.", "paris"), ("It is Paris", "paris"), ("", "paris"), ("", ""))
    assert exact_match(pairs).tolist() == [1, 0, 0, 1]


def test_contains_wants_whole_words():
    pairs = answers(
        ("It is Paris, of course", "paris"), ("Parisian", "paris"), ("the blue sea", "Blue Sea!"), ("x", "?")
    )
    assert contains(pairs).tolist() == [1, 0, 1, 0]


def save_model(folder, outputs=1, template=None, **changes):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_labels=outputs, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


PAIRS = answers(("a long answer " * 5, "r"), ("short", "r"), ("", "r"), ("another one", "r"))


def by_hand(model, tokenizer, text):
    with torch.no_grad():
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=model.device)
        return model(ids).logits.item()


@pytest.mark.parametrize("budget", [1, 30, 10_000])
def test_a_reward_model_scores_prompt_and_answer_whatever_the_batching(tmp_path, budget):
    model, tokenizer = save_model(tmp_path)
    found = RewardModel(str(tmp_path), None, budget)(PAIRS)
    expected = [by_hand(model, tokenizer, a.prompt + a.text) for a in PAIRS]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert len(set(found.round(6))) == 4


def test_a_reward_model_with_a_chat_template_reads_it(tmp_path):
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    model, tokenizer = save_model(tmp_path, template=template)
    found = RewardModel(str(tmp_path), None)(PAIRS[:2])
    expected = [by_hand(model, tokenizer, f"<user>{a.prompt}<assistant>{a.text}") for a in PAIRS[:2]]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_text_that_is_too_long_loses_its_beginning(tmp_path):
    save_model(tmp_path, model_max_length=12)
    reward = RewardModel(str(tmp_path), None)
    one, other = (Answer("a question " * n, "and the same answer at the end of it", "r") for n in (30, 60))
    marks = reward([one, other])
    assert marks[0] == pytest.approx(marks[1], abs=1e-5)


def test_a_reward_model_without_a_padding_token_pads_all_the_same(tmp_path):
    save_model(tmp_path)
    plain = RewardModel(str(tmp_path), None)(PAIRS)
    save_model(tmp_path / "bare", pad_token=None)
    np.testing.assert_allclose(RewardModel(str(tmp_path / "bare"), None)(PAIRS), plain, rtol=1e-4, atol=1e-5)


def test_a_classifier_is_no_reward_model(tmp_path):
    save_model(tmp_path, outputs=3)
    with pytest.raises(ConfigError, match=r"reward_model of the nice selector: .* a classifier with 3 outputs"):
        RewardModel(str(tmp_path), None)


def test_a_language_model_is_no_reward_model_because_its_head_would_be_random(tmp_path):
    from dataflex.testing import tiny_model

    tiny_model().save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text().replace("{", '{"num_labels": 1, ', 1)
    (tmp_path / "config.json").write_text(config)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has no weights for score.weight, which would be random -> name a reward"):
        RewardModel(str(tmp_path), None)


def test_a_path_that_leads_nowhere_is_told_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere' cannot be loaded: .* -> name a folder"):
        RewardModel(str(tmp_path / "nowhere"), None)
