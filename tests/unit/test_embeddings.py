"""Embeddings of many rows at once equal the pooled hidden states of one row at a time, on any number of ranks."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from dataflex.core.errors import ComponentError
from dataflex.model.hidden_states import last_hidden_states
from dataflex.scoring import ScoreStore, hidden_state_embeddings
from dataflex.scoring.embeddings import POOLINGS, pool, token_mask
from dataflex.testing import TokenRows, device, pad_collate, tiny_model
from peft import LoraConfig, get_peft_model
from rank_group import on_ranks, one_thread
from transformers import BartConfig, BartForConditionalGeneration, Gemma2Config, Gemma2ForCausalLM

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def rows():
    return TokenRows(17, lengths=range(6, 30))


def embed(model, dataset, **options):
    return hidden_state_embeddings(model, dataset, **({"collator": pad_collate, "progress": False} | options))


@torch.no_grad()
def one_by_one(model, dataset, pooling="mean"):
    """The oracle: each row alone, the last of the hidden states that the model itself reports, pooled by hand."""
    training = model.training
    model.eval()
    found = []
    for row in dataset:
        tokens = torch.tensor([row["input_ids"]], device=device())
        states = model(tokens, output_hidden_states=True, use_cache=False).hidden_states[-1][0].double()
        weights = torch.arange(1, len(states) + 1).double()
        vector = {"mean": states.mean(0), "last": states[-1], "weighted": weights @ states / weights.sum()}[pooling]
        found.append((vector / vector.norm()).float().cpu().numpy())
    model.train(training)
    return np.stack(found)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_embeddings_equal_one_row_at_a_time_and_have_length_one(rows, kind, pooling):
    model = tiny_model(kind=kind)
    found = embed(model, rows, pooling=pooling)
    assert found.shape == (17, 32)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, one_by_one(model, rows, pooling), **CLOSE)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


def test_the_poolings_differ(rows):
    model = tiny_model()
    mean, last, weighted = (embed(model, rows, pooling=pooling) for pooling in POOLINGS)
    assert min(np.abs(mean - last).max(), np.abs(mean - weighted).max(), np.abs(last - weighted).max()) > 1e-2


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("budget", [1, 40, 100_000])
def test_embeddings_do_not_depend_on_the_batching(rows, budget, pooling):
    model = tiny_model()
    found = embed(model, rows, token_budget=budget, pooling=pooling)
    np.testing.assert_allclose(found, embed(model, rows, pooling=pooling), **CLOSE)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_embeddings_do_not_depend_on_the_padding_side(rows, pooling):
    def pad_left(batch):
        backwards = [{key: value[::-1] for key, value in row.items()} for row in batch]
        return {key: value.flip(1) for key, value in pad_collate(backwards).items()}

    model = tiny_model()
    np.testing.assert_allclose(
        embed(model, rows, collator=pad_left, pooling=pooling), embed(model, rows, pooling=pooling), **CLOSE
    )


@pytest.mark.parametrize("pooling", POOLINGS)
def test_without_an_attention_mask_the_lengths_of_the_rows_tell_the_padding(rows, pooling):
    def without(batch):  # causal attention and padding on the right: no token sees padding
        found = pad_collate(batch)
        del found["attention_mask"]
        for row in batch:
            row.clear()  # as collators may
        return found

    model = tiny_model()
    np.testing.assert_allclose(
        embed(model, rows, collator=without, pooling=pooling), embed(model, rows, pooling=pooling), **CLOSE
    )


def test_a_mask_of_pairs_of_tokens_is_no_mask_of_tokens_and_numbered_documents_are_tokens():
    tokens = torch.zeros(2, 3, dtype=torch.long)
    lengths = torch.tensor([3, 1])
    expected = [[True, True, True], [True, False, False]]
    assert token_mask({"input_ids": tokens, "attention_mask": torch.ones(2, 1, 3, 3)}, lengths).tolist() == expected
    assert token_mask({"input_ids": tokens}, lengths).tolist() == expected
    numbered = {"input_ids": tokens, "attention_mask": torch.tensor([[1, 1, 2], [0, 2, 0]])}
    assert token_mask(numbered, lengths).tolist() == [[True, True, True], [False, True, False]]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_what_a_model_computes_at_padding_does_not_matter_even_if_infinite(pooling):
    hidden = torch.randn(1, 4, 8)
    broken = hidden.clone()
    broken[0, 3] = torch.inf
    mask = torch.tensor([[True, True, True, False]])
    torch.testing.assert_close(pool(broken, mask, pooling), pool(hidden[:, :3], mask[:, :3], pooling))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_row_without_tokens_is_zero(pooling):
    assert pool(torch.randn(1, 3, 4), torch.zeros(1, 3, dtype=torch.bool), pooling).tolist() == [[0, 0, 0, 0]]


def test_embeddings_follow_the_indices_asked_for(rows):
    model = tiny_model()
    order = [7, 0, 16, 7]
    np.testing.assert_allclose(embed(model, rows, indices=order), embed(model, rows)[order], **CLOSE)
    assert embed(model, rows, indices=[]).shape == (0, 0)


def test_embeddings_through_lora_with_dropout_in_the_middle_of_training_disturb_nothing(rows):
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False)
    model = get_peft_model(tiny_model(), config)
    model.train()

    def state():
        flags = [module.training for module in model.modules()]
        hooks = [len(module._forward_pre_hooks) for module in model.modules()]
        return flags, hooks, torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())

    before = state()
    found = embed(model, rows)
    assert state() == before
    np.testing.assert_allclose(found, one_by_one(model, rows), **CLOSE)
    assert all(p.grad is None for p in model.parameters())


def test_the_output_layer_computes_one_position_per_row(rows):
    model = tiny_model()
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[:2].numel()))
    embed(model, rows)
    assert sum(seen) == len(rows)


def test_a_model_whose_output_layer_is_not_found_takes_the_general_route(rows, monkeypatch):
    model = tiny_model()
    expected = embed(model, rows)
    monkeypatch.setattr(type(model), "get_output_embeddings", lambda self: None)
    np.testing.assert_allclose(embed(model, rows), expected, **CLOSE)


def test_a_model_that_does_not_call_its_output_layer_takes_the_general_route_and_is_asked_once(rows, monkeypatch):
    model = tiny_model()
    expected = embed(model, rows, token_budget=100)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(type(model), "get_output_embeddings", lambda self: torch.nn.Linear(1, 1))
    batches = []

    def counting(batch):
        batches.append(1)
        return pad_collate(batch)

    np.testing.assert_allclose(embed(model, rows, token_budget=100, collator=counting), expected, **CLOSE)
    assert len(calls) == len(batches) + 1 > 2


def test_a_compiled_model_gets_no_hook(rows):
    model = tiny_model()
    with last_hidden_states(torch.compile(model, backend="eager")):
        assert not model.lm_head._forward_pre_hooks
    with last_hidden_states(model):
        assert model.lm_head._forward_pre_hooks


def test_a_model_that_caps_its_logits_is_served(rows):
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = Gemma2ForCausalLM(Gemma2Config(**sizes, **heads))
    np.testing.assert_allclose(embed(model, rows), one_by_one(model, rows), **CLOSE)


def test_models_without_hidden_states_are_refused(rows):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Embedding(128, 8)

        def forward(self, input_ids, attention_mask):
            return (self.body(input_ids),)

    with pytest.raises(ComponentError, match=r"Plain gives no hidden state .* -> use embeddings that are not"):
        embed(Plain(), rows)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 1, "decoder_attention_heads": 1}
    with pytest.raises(ComponentError, match="BartForConditionalGeneration is an encoder-decoder"):
        embed(BartForConditionalGeneration(BartConfig(vocab_size=128, d_model=8, **sizes)), rows)


def test_a_model_with_broken_weights_is_named_with_the_rows():
    model = tiny_model()
    dataset = [{"input_ids": [i, i + 1], "attention_mask": [1, 1], "labels": [i, i + 1]} for i in (3, 5, 7, 9)]
    with torch.no_grad():
        model.model.embed_tokens.weight[[5, 9]] = torch.nan
    with pytest.raises(ComponentError, match="NaN or infinite for 2 of 3 rows, first for row 3 -> "):
        embed(model, dataset, indices=[0, 3, 1])


# --- several ranks, of which one has no rows, and a pass that was stopped


def embedded(accelerator, folder):
    model, dataset = tiny_model(), TokenRows(5, lengths=range(6, 30))
    options = {"accelerator": accelerator}
    store = ScoreStore(folder / "kept", lambda: "key", seconds=0)  # a part after every batch
    found = {
        "one batch": embed(model, dataset, token_budget=10_000, **options),
        "many batches": embed(model, dataset, token_budget=40, **options),
        "stored": embed(model, dataset, token_budget=40, store=store, **options),
    }
    torch.distributed.barrier()  # rank 0 looks for parts that every rank has written
    return found | {"taken up": embed(tiny_model(seed=1), dataset, token_budget=40, store=store, **options)}


def test_two_ranks_get_what_one_gets_also_where_one_of_them_has_no_rows_of_its_own(tmp_path):
    dataset = TokenRows(5, lengths=range(6, 30))
    with one_thread():
        one, many = (embed(tiny_model(), dataset, token_budget=budget) for budget in (10_000, 40))
    for answer in on_ranks(embedded, 2, tmp_path):
        np.testing.assert_array_equal(answer["one batch"], one)
        for what in ("many batches", "stored", "taken up"):
            np.testing.assert_array_equal(answer[what], many)
