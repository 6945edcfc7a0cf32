"""Gradients of many rows at once equal autograd's of one row at a time, whatever is trained."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from dataflex.core.errors import ComponentError
from dataflex.scoring import per_sample_gradients
from dataflex.scoring.gradients.sinks import Whole
from dataflex.scoring.passes.row_pass import RowBatch
from dataflex.testing import TokenRows, device, tiny_batch, tiny_model
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

CLOSE = {"rtol": 1e-5, "atol": 1e-7}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def moved(model: nn.Module) -> nn.Module:
    """Every trainable number off its initial value: LoRA's B starts at 0, where half of the gradients are 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.device)
    return model


def lora(**options) -> nn.Module:
    base = tiny_model(vocab_size=64, kind="qwen2")
    config = LoraConfig(**{"r": 4, "target_modules": LINEAR, "lora_dropout": 0.1} | options)
    return moved(get_peft_model(base, config)).train()


def only(model: nn.Module, *names: str) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in names))
    return model


def tied() -> nn.Module:
    config = Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config)


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=64))


def shared_layer() -> nn.Module:
    model = tiny_model(vocab_size=64)
    model.model.layers[1].mlp.up_proj = model.model.layers[0].mlp.up_proj
    return only(model, "up_proj")


MODELS = {
    "lora": lora,
    "lora on all linear layers": lambda: lora(target_modules=[*LINEAR, "lm_head"]),
    "dora": lambda: lora(use_dora=True),
    "rslora": lambda: lora(use_rslora=True, r=2),
    "the output layer alone": lambda: only(tiny_model(vocab_size=64), "lm_head"),
    "lora with biases": lambda: lora(bias="all"),
    "full, llama": lambda: tiny_model(vocab_size=64),
    "full, qwen2 with biases": lambda: tiny_model(vocab_size=64, kind="qwen2"),
    "full, tied embeddings": tied,
    "full, gpt2 with transposed layers and layer norms": gpt2,
    "norms alone": lambda: only(tiny_model(vocab_size=64), "norm"),
    "a layer used twice": shared_layer,
}


def batch_of(rows: TokenRows) -> RowBatch:
    batch = tiny_batch([rows[i] for i in range(len(rows))])
    labels = batch.pop("labels")
    return RowBatch(batch, labels)


def one_by_one(model: nn.Module, rows: TokenRows, total: bool = False) -> list[dict[str, torch.Tensor]]:
    model = copy.deepcopy(model).eval()
    found = []
    for i in range(len(rows)):
        batch = tiny_batch([rows[i]])
        model.zero_grad()
        loss = model(**batch).loss
        if total:
            loss = loss * (batch["labels"][:, 1:] != -100).sum()
        loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    return found


def all_at_once(model: nn.Module, rows: TokenRows, total: bool = False) -> dict[str, torch.Tensor]:
    with per_sample_gradients(model) as gradients:
        sink = Whole(len(rows), device())
        counts = gradients.backward(batch_of(rows), sink, total=total)
        names = {route.index: route.name for route in gradients.routes}
    assert counts.tolist() == [len(row["labels"]) - 2 for row in (rows[i] for i in range(len(rows)))]
    return {names[index]: vectors for index, vectors in sink.vectors.items()}


@pytest.fixture(scope="module")
def rows() -> TokenRows:
    return TokenRows(6, vocab_size=64, lengths=[5, 17, 9, 17, 3, 12])


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_they_are_autograds(make, rows):
    model = make()
    expected = one_by_one(model, rows)
    found = all_at_once(model, rows)
    assert found.keys() == expected[0].keys()
    for name, vectors in found.items():
        stacked = torch.stack([row[name].flatten() for row in expected])
        assert stacked.abs().max() > 0, name
        np.testing.assert_allclose(vectors, stacked, rtol=1e-5, atol=2e-6 * float(stacked.abs().max()), err_msg=name)


def test_the_sum_of_token_losses_instead_of_their_mean(rows):
    model = lora()
    found, expected = all_at_once(model, rows, total=True), one_by_one(model, rows, total=True)
    for name, vectors in found.items():
        torch.testing.assert_close(
            vectors, torch.stack([row[name].flatten() for row in expected]), rtol=1e-4, atol=1e-5
        )


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")  # in transformers 5.24
def test_gradient_checkpointing_changes_nothing(rows):
    plain = lora()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable()
    checkpointed.enable_input_require_grads()
    found, expected = all_at_once(checkpointed, rows), all_at_once(plain, rows)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **CLOSE)


def test_a_norm_that_an_engine_wraps_by_itself_needs_no_copy(rows):
    """FSDP 2 changes the class of what it wraps to one that makes another; accelerate 1.15 wraps the last norm."""
    plain, wrapped = tied(), tied()
    norm = wrapped.model.norm
    of_an_engine = {"__new__": lambda cls, *given: type(plain.model.norm)(*given)}
    norm.__class__ = type("Wrapped", (type(norm),), of_an_engine)
    expected, found = all_at_once(plain, rows), all_at_once(wrapped, rows)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_few_rows_at_a_time_where_a_parameter_is_large(rows, monkeypatch):
    whole = all_at_once(tied(), rows)
    monkeypatch.setattr("dataflex.scoring.gradients.per_row.MOST_NUMBERS", 4000)
    parts = all_at_once(tied(), rows)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], **CLOSE)


def test_nothing_is_left_behind(rows):
    model = lora()
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    all_at_once(model, rows)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert parameter.requires_grad == before[name][0]
        assert torch.equal(parameter, before[name][1])
    assert not any(module._forward_hooks for module in model.modules())


def test_a_row_without_labels_has_no_gradient():
    rows = TokenRows(3, vocab_size=64, lengths=9)
    batch = batch_of(rows)
    batch.token_labels[1] = -100
    with per_sample_gradients(lora()) as gradients:
        sink = Whole(3, device())
        assert gradients.backward(batch, sink).tolist() == [7, 0, 7]
    assert sink.squares_B[1] == 0
    assert (sink.squares_B[[0, 2]] > 0).all()


def test_a_model_without_anything_to_train_is_refused(rows):
    model = tiny_model(vocab_size=64).requires_grad_(False)
    with pytest.raises(ComponentError, match="no parameter of the model is trainable"):
        all_at_once(model, rows)


@pytest.fixture
def fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_under_bf16_they_are_float32_and_close(rows, fresh_accelerate):
    model = lora()
    expected = all_at_once(model, rows)
    with per_sample_gradients(model, Accelerator(cpu=True, mixed_precision="bf16")) as gradients:
        sink = Whole(len(rows), device())
        gradients.backward(batch_of(rows), sink)
        for route in gradients.routes:
            vectors = sink.vectors[route.index]
            assert vectors.dtype == torch.float32
            cosines = torch.nn.functional.cosine_similarity(vectors, expected[route.name])
            assert cosines.min() > 0.95, route.name
            assert not torch.equal(vectors, expected[route.name])
