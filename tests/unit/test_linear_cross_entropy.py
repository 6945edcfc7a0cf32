"""Token losses without logits: values, gradients and memory against the plain way, and the routes that use them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dataflex.model import label_losses
from dataflex.model.linear_cross_entropy import linear_cross_entropy
from dataflex.model.output_losses import OutputLosses, plain_output_layer
from dataflex.scoring import RowPass, TargetSet, per_sample_gradients, per_sample_losses, target_means
from dataflex.scoring.gradients.sinks import Whole
from dataflex.scoring.passes.row_pass import RowBatch
from dataflex.testing import TokenRows, pad_collate, tiny_model
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

M, H, V = 23, 12, 57
LORA = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.0)


def case(seed=0, bias=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(M, H, generator=generator).to(dtype)
    weight = torch.randn(V, H, generator=generator).to(dtype)
    offsets = torch.randn(V, generator=generator).to(dtype) if bias else None
    targets = torch.randint(0, V, (M,), generator=generator)
    factors = torch.rand(M, generator=generator)
    return hidden, weight, offsets, targets, factors


@pytest.mark.parametrize("chunk", [1, 4, 23, 100])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)])
def test_values_and_gradients_equal_the_plain_way(chunk, bias, trained):
    results = []
    for route in ("plain", "chunked"):
        hidden, weight, offsets, targets, factors = case(bias=bias)
        tensors = [hidden.requires_grad_(trained[0]), weight.requires_grad_(trained[1])]
        if offsets is not None:
            tensors.append(offsets.requires_grad_(trained[1]))
        if route == "plain":
            losses = F.cross_entropy(F.linear(hidden, weight, offsets), targets, reduction="none")
        else:
            losses = linear_cross_entropy(hidden, weight, offsets, targets, chunk)
        (factors * losses).sum().backward()
        results.append([losses.detach(), *(t.grad for t in tensors if t.requires_grad)])
    assert len(results[0]) == len(results[1]) == 1 + trained[0] + trained[1] * (1 + bias)
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_losses_of_huge_and_tiny_logits_are_finite():
    hidden, weight, _, targets, _ = case()
    losses = linear_cross_entropy(hidden * 1e3, weight, None, targets, 5)
    assert losses.isfinite().all()
    torch.testing.assert_close(losses, F.cross_entropy(hidden * 1e3 @ weight.t(), targets, reduction="none"))


def test_no_tokens_give_no_losses_and_a_gradient_of_zero():
    hidden, weight, _, targets, _ = case()
    weight.requires_grad_()
    linear_cross_entropy(hidden[:0], weight, None, targets[:0]).sum().backward()
    assert (weight.grad == 0).all()


@pytest.mark.parametrize("by_autocast", [True, False])
def test_half_precision_is_as_precise_as_a_linear_layer_in_it(by_autocast):
    hidden, weight, _, targets, factors = case(dtype=torch.float32 if by_autocast else torch.bfloat16)
    hidden.requires_grad_(), weight.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=by_autocast):
        losses = linear_cross_entropy(hidden, weight, None, targets, 4)
        plain = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")
    torch.testing.assert_close(losses, plain, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad((factors * losses).sum(), (hidden, weight))
    theirs = torch.autograd.grad((factors * plain).sum(), (hidden, weight))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("chunk", [4, 4096])
def test_gradients_in_half_precision_are_summed_in_float32(chunk):
    """Hundreds of small parts of one sign: a sum in bf16 stops growing after some 256 of them."""
    tokens, words = 1500, 1200
    hidden = torch.full((tokens, 4), 0.5, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.full((words, 4), 0.5, dtype=torch.bfloat16)
    weight[0] = -0.5
    weight.requires_grad_()
    targets = torch.zeros(tokens, dtype=torch.long)
    ours = torch.autograd.grad(linear_cross_entropy(hidden, weight, None, targets, chunk).sum(), (hidden, weight))
    exact = [t.detach().float().requires_grad_() for t in (hidden, weight)]
    theirs = torch.autograd.grad(F.cross_entropy(exact[0] @ exact[1].t(), targets, reduction="sum"), exact)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=1e-2, atol=1e-2 * float(b.abs().max()))


class Sizes(TorchDispatchMode):
    """Bytes of what is made anew, views left out."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)}
        new = [t for t in tree_flatten(found)[0] if isinstance(t, torch.Tensor)]
        self.made += [t.nbytes for t in new if t.untyped_storage().data_ptr() not in known]
        return found


def test_nothing_of_the_size_of_the_weight_is_made_beside_its_gradient():
    tokens, width, words, chunk = 32, 64, 5000, 300
    hidden = torch.randn(tokens, width, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(words, width, dtype=torch.bfloat16, requires_grad=True)
    losses = linear_cross_entropy(hidden, weight, None, torch.arange(tokens), chunk).sum()
    with Sizes() as sizes:
        torch.autograd.grad(losses, (hidden, weight))
    logits = 4 * tokens * chunk
    whole = [size for size in sizes.made if size > max(logits, 4 * hidden.numel())]
    assert whole == [weight.nbytes], "its gradient, in its own type, once"


MEASURE = """
import torch
from dataflex.model.linear_cross_entropy import linear_cross_entropy
def peak():  # of this program; getrusage gives that of the process it was started from, where that was larger
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
torch.set_num_threads(1)
M, H, V = 1024, 16, 150_000
torch.manual_seed(0)
hidden, weight = torch.randn(M, H, requires_grad=True), torch.randn(V, H, requires_grad=True)
targets = torch.randint(0, V, (M,))
weight.grad = torch.zeros_like(weight)
linear_cross_entropy(hidden[:1], weight, None, targets[:1]).sum().backward()  # warm
peaks = [peak()]
linear_cross_entropy(hidden, weight, None, targets).sum().backward()
peaks.append(peak())
torch.nn.functional.cross_entropy(hidden @ weight.t(), targets)  # takes more: the peak before it does not hide it
peaks.append(peak())
print(*(1024 * (later - peaks[0]) / (4 * M * V) for later in peaks[1:]))
"""


def test_peak_memory_at_a_vocabulary_of_150k_is_at_most_a_quarter_of_the_logits():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    chunked, plain = map(float, done.stdout.split())
    assert plain >= 1  # it sees the logits where there are any
    assert chunked <= 0.25


def test_rows_are_scored_alike_with_and_without_logits():
    rows, model = TokenRows(20, lengths=range(5, 17)), tiny_model()
    full = per_sample_losses(model, rows, collator=pad_collate, progress=False, chunked=False)
    chunked = per_sample_losses(model, rows, collator=pad_collate, progress=False, chunked=True)
    np.testing.assert_allclose(chunked, full, rtol=1e-5)
    assert "forward" not in vars(model.lm_head)


def test_scoring_leaves_the_logits_out_from_a_large_vocabulary_on(monkeypatch):
    calls, plain = [], OutputLosses.at
    monkeypatch.setattr(OutputLosses, "at", lambda self, *args: calls.append(1) or plain(self, *args))
    rows, model = TokenRows(4), tiny_model()
    per_sample_losses(model, rows, collator=pad_collate, progress=False)
    assert not calls
    monkeypatch.setattr(label_losses, "LEAST_VOCABULARY", 128)
    per_sample_losses(model, rows, collator=pad_collate, progress=False)
    assert len(calls) == 1


@pytest.mark.parametrize("gradients", [True, False])
def test_no_batch_is_run_twice_and_none_has_logits_where_they_are_left_out(monkeypatch, gradients):
    monkeypatch.setattr(label_losses, "LEAST_VOCABULARY", 128)
    widths, rows, model = [], TokenRows(6, lengths=range(5, 11)), get_peft_model(tiny_model(), LORA)
    model.base_model.model.lm_head.register_forward_hook(lambda module, args, output: widths.append(output.shape[-1]))
    if gradients:
        plan = RowPass(rows, pad_collate, progress=False, token_budget=20, gradients=True)
        with per_sample_gradients(model) as found:
            target_means(found, model, [TargetSet("eval", rows)], plan)  # looks at the model once, besides
            widths.clear()
            target_means(found, model, [TargetSet("eval", rows)], plan)
    else:
        per_sample_losses(model, rows, collator=pad_collate, progress=False, token_budget=20)
    assert widths == [1] * 3


@pytest.mark.parametrize("chunked", [True, False])
def test_gradients_are_the_same_with_and_without_logits(monkeypatch, chunked):
    """Against autograd, row by row: two different lengths, a frozen output layer."""
    monkeypatch.setattr(label_losses, "LEAST_VOCABULARY", 2 if chunked else 2**30)
    rows, model = TokenRows(4, lengths=(5, 9, 7, 6)), get_peft_model(tiny_model(), LORA).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    with per_sample_gradients(model) as found:
        batch = dict(pad_collate([rows[i] for i in range(4)]))
        labels = batch.pop("labels")
        sink = Whole(4, torch.device("cpu"))
        found.backward(RowBatch(batch, labels), sink)
    for row in range(4):
        model.zero_grad()
        model(**pad_collate([rows[row]])).loss.backward()
        for route in found.routes:
            expected = route.parameter.grad.flatten()
            torch.testing.assert_close(sink.vectors[route.index][row], expected, rtol=1e-4, atol=1e-6)
    model.zero_grad(set_to_none=True)


def test_nothing_below_the_lowest_adapter_has_a_gradient_though_checkpointing_asks_for_one():
    rows, model = TokenRows(2), tiny_model()
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], layers_to_transform=[1])
    model = get_peft_model(model, config)
    model.enable_input_require_grads()
    seen = []
    model.base_model.model.model.layers[0].register_forward_hook(lambda module, args, output: seen.append(output))
    with per_sample_gradients(model) as found:
        target_means(found, model, [TargetSet("eval", rows)], RowPass(rows, pad_collate, progress=False))
    assert seen
    assert not any((each[0] if isinstance(each, tuple) else each).requires_grad for each in seen)
    model(**pad_collate([rows[0]]))
    assert (seen[-1][0] if isinstance(seen[-1], tuple) else seen[-1]).requires_grad, "training is as it was"


def test_a_model_that_changes_its_logits_is_scored_with_them():
    """Once told by its configuration, once found out."""
    rows, model = TokenRows(6), tiny_model()
    expected = per_sample_losses(model, rows, collator=pad_collate, progress=False)
    plain = type(model).forward

    def halved(self, *args, **kwargs):
        output = plain(self, *args, **kwargs)
        output.logits = output.logits * 0.5
        return output

    model.forward = halved.__get__(model)
    full = per_sample_losses(model, rows, collator=pad_collate, progress=False, chunked=False)
    assert not np.allclose(full, expected)
    assert np.array_equal(per_sample_losses(model, rows, collator=pad_collate, progress=False, chunked=True), full)
    model.config.final_logit_softcapping = 30.0
    assert plain_output_layer(model) is None


def test_losses_that_were_made_another_type_on_the_way_out_are_not_those_that_the_layer_gave():
    hidden, weight, _, targets, _ = case(bias=False)
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    output = OutputLosses(layer)
    with output.at(torch.arange(len(targets)), targets, len(hidden)):
        given = layer(hidden)
        assert output.gave(given)
        assert output.gave(given.clone())
        assert not output.gave(given.bfloat16())
        assert not output.gave(given.to("meta"))
        assert not output.gave(given + 1)


def test_only_a_plain_linear_layer_is_taken():
    model = tiny_model()
    assert plain_output_layer(model) is model.lm_head
    model.lm_head = torch.nn.Sequential(model.lm_head)
    assert plain_output_layer(model) is None
