"""The fixture kit gives the same small things every time and disturbs nobody's random numbers."""

from __future__ import annotations

import re

import pytest
import torch
from dataflex import testing
from dataflex.testing import (
    TINY_SPECIAL_TOKENS,
    TokenRows,
    device,
    pad_collate,
    tiny_batch,
    tiny_model,
    tiny_tokenizer,
    tiny_training_args,
)
from dataflex.testing.devices import described
from transformers import Trainer


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mixtral", "qwen2_moe"])
def test_model_has_the_asked_shape_in_fp32_with_embeddings_of_its_own(kind):
    model = tiny_model(vocab_size=96, hidden=16, layers=3, kind=kind)
    assert model.config.model_type == kind
    assert len(model.model.layers) == 3
    assert model.lm_head.weight.shape == (96, 16)
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_model_is_a_function_of_its_seed():
    one, same, other = tiny_model(seed=3), tiny_model(seed=3), tiny_model(seed=4)
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_building_a_model_draws_nothing_from_the_global_generator():
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    tiny_model()
    assert torch.equal(torch.rand(4), expected)


def test_tokenizer_survives_any_text_and_knows_the_models_special_tokens():
    tokenizer = tiny_tokenizer(["some words to merge, some words"], vocab_size=280)
    text = "some words\n\tünï ☃ \x00 <tag>  two blanks"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    ids = tokenizer.convert_tokens_to_ids(list(TINY_SPECIAL_TOKENS.values()))
    assert ids == [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [0, 1, 2]
    config = tiny_model().config
    assert ids == [config.pad_token_id, config.bos_token_id, config.eos_token_id]


def test_tokenizer_trains_on_its_own_when_no_text_is_given():
    assert len(tiny_tokenizer()) == 512


def test_rows_mask_the_prompt_and_never_hold_a_special_token():
    rows = TokenRows(20, vocab_size=10, lengths=range(4, 9), prompt=3)
    for row in (rows[i] for i in range(len(rows))):
        assert 4 <= len(row["input_ids"]) < 9
        assert set(row["input_ids"]) <= set(range(3, 10))
        assert row["labels"] == [-100] * 3 + row["input_ids"][3:]
        assert row["attention_mask"] == [1] * len(row["input_ids"])
    assert len({len(rows[i]["input_ids"]) for i in range(20)}) > 1


@pytest.mark.parametrize(("lengths", "expected"), [(5, [5, 5, 5]), ([7, 4, 9], [7, 4, 9])])
def test_row_lengths_are_the_ones_asked_for(lengths, expected):
    rows = TokenRows(3, lengths=lengths)
    assert [len(rows[i]["input_ids"]) for i in range(3)] == expected


def test_rows_are_a_function_of_their_seed_and_cannot_be_changed_through_an_item():
    rows = TokenRows(4, seed=1)
    kept = rows[0]["input_ids"]
    rows[0]["input_ids"].append(99)
    assert rows[0]["input_ids"] == kept == TokenRows(4, seed=1)[0]["input_ids"] != TokenRows(4, seed=2)[0]["input_ids"]


def test_rows_refuse_lengths_that_do_not_fit():
    with pytest.raises(ValueError, match="2 numbers for 3 rows"):
        TokenRows(3, lengths=[4, 4])
    with pytest.raises(ValueError, match="nothing to learn in a row of 2 tokens"):
        TokenRows(2, lengths=[8, 2], prompt=2)


def test_collator_pads_on_the_right():
    batch = pad_collate([TokenRows(1, lengths=3, prompt=1)[0], TokenRows(1, lengths=5, prompt=1)[0]])
    assert {tensor.shape for tensor in batch.values()} == {(2, 5)}
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["input_ids"][0, 3:].tolist() == [0, 0]
    assert batch["labels"][0, 3:].tolist() == [-100, -100]


def test_the_kit_trains_and_the_loss_falls(tmp_path):
    args = tiny_training_args(tmp_path, max_steps=12, learning_rate=1e-2)
    assert args.seed == 42
    trainer = Trainer(tiny_model(), args, train_dataset=TokenRows(4), data_collator=pad_collate)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]


def test_the_device_is_the_cpu_unless_an_accelerator_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    for value, expected in ((None, "cpu"), ("", "cpu"), ("0", "cpu"), ("1", "xpu")):
        monkeypatch.delenv("DATAFLEX_TEST_GPU", raising=False)
        if value is not None:
            monkeypatch.setenv("DATAFLEX_TEST_GPU", value)
        assert device().type == expected


def test_an_accelerator_that_is_asked_for_and_not_there_is_the_cpu_and_the_report_says_so(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setenv("DATAFLEX_TEST_GPU", "1")
    assert device().type == "cpu"
    assert re.fullmatch(r"cpu, as torch \S+ sees no accelerator", described())
    monkeypatch.setenv("DATAFLEX_TEST_GPU", "cuda")
    with pytest.raises(RuntimeError, match="found 'cuda', allowed: 1"):
        device()


MADE = {
    "tiny_model": lambda folder: list(tiny_model().state_dict().values()),
    "tiny_batch": lambda folder: list(tiny_batch([TokenRows(1)[0]]).values()),
    "tiny_training_args": lambda folder: [],
}
"""What each factory of the kit that makes something for a device makes there."""
ELSEWHERE = {"TINY_SPECIAL_TOKENS", "TokenRows", "device", "pad_collate", "tiny_tokenizer"}  # no tensors, or a loader's
VISION = {"tiny_vision_model", "tiny_vision_processor", "write_image_rows", "write_vision_model"}  # test_vision_runs.py
RUNS = {"Conformance", "NotConforming", "RankError", "RankProcesses", "conformance", "conformance_cases", "two_ranks"}


def test_everything_in_the_kit_is_made_on_the_device_of_the_tests(monkeypatch, tmp_path):
    assert {*MADE, *ELSEWHERE, *RUNS, *VISION} == set(testing.__all__)
    assert {value.device.type for make in MADE.values() for value in make(tmp_path)} == {device().type}
    for module in ("quiet_arguments", "tiny_models", "token_rows"):
        monkeypatch.setattr(f"dataflex.testing.{module}.device", lambda: torch.device("meta"))
    assert {value.device.type for make in MADE.values() for value in make(tmp_path)} == {"meta"}
    assert pad_collate([TokenRows(1)[0]])["input_ids"].device.type == "cpu"  # as any collator of a dataloader


def test_training_arguments_use_the_cpu_only_where_the_tests_do(monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr("transformers.TrainingArguments", lambda **arguments: given.update(arguments))
    for kind in ("cpu", "cuda"):
        monkeypatch.setattr("dataflex.testing.quiet_arguments.device", lambda kind=kind: torch.device(kind))
        tiny_training_args(tmp_path)
        assert given["use_cpu"] is (kind == "cpu")
