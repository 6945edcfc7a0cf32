"""Gradients of rows in fp16: what is too small for it arrives, and what is too large is noticed."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from dataflex.core.errors import ComponentError
from dataflex.scoring import per_sample_gradients
from dataflex.scoring.gradients.influence import require_finite_gradients
from dataflex.scoring.gradients.sinks import Whole
from dataflex.scoring.trial import try_gradients
from dataflex.testing import TokenRows, device, pad_collate
from test_gradient_replay import Heads, Mixture, with_layer
from test_gradients import batch_of, lora, only
from torch import nn

MODELS = {
    "by rules": lora,
    "modules by row": lambda: only(with_layer(Mixture), "layers.0.mlp"),
    "norms on heads by row": lambda: only(with_layer(Heads), "layers.0.mlp"),
    "the output layer": lambda: lora(target_modules=["q_proj", "up_proj", "lm_head"]),
}


def with_output(model: nn.Module, factor: float) -> nn.Module:
    """An output layer whose gradients are so much smaller or larger in all layers below it."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(factor)
    return model


def found_by_row(model: nn.Module, rows: TokenRows, autocast: bool) -> dict[str, torch.Tensor]:
    context = torch.autocast(device().type, dtype=torch.float16) if autocast else nullcontext()
    with context, per_sample_gradients(model) as gradients:
        sink = Whole(len(rows), device())
        gradients.backward(batch_of(rows), sink)
        require_finite_gradients(sink)
        return {r.name: sink.vectors[r.index] for r in gradients.routes if r.index in sink.vectors}


def require_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(vectors.norm(dim=1).max()) for vectors in expected.values())
    for name, vectors in expected.items():
        assert found[name].dtype == torch.float32
        apart = (found[name] - vectors).norm(dim=1)
        assert (apart <= 0.05 * vectors.norm(dim=1) + 1e-3 * largest).all(), (name, apart / vectors.norm(dim=1))


@pytest.fixture
def rows() -> TokenRows:
    return TokenRows(5, vocab_size=64, lengths=[5, 17, 9, 120, 12])


@pytest.mark.parametrize("autocast", [False, True], ids=["fp16 weights", "fp16 autocast"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("factor", [1e-4, 1.0])
def test_what_is_small_does_not_vanish(make, autocast, factor, rows, monkeypatch):
    model = with_output(make(), factor)
    if not autocast:
        model = model.half()
    expected = found_by_row(copy.deepcopy(model).float(), rows, False)
    require_close(found_by_row(model, rows, autocast), expected)


def test_without_a_scale_it_does_vanish(rows, monkeypatch):
    model = with_output(lora(), 1e-4).half()
    expected = found_by_row(copy.deepcopy(model).float(), rows, False)
    monkeypatch.setattr("dataflex.scoring.gradients.per_row.row_scales", lambda *_, **__: None)
    with pytest.raises(AssertionError):
        require_close(found_by_row(model, rows, False), expected)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_what_overflows_comes_again_with_a_smaller_scale(make, rows, monkeypatch):
    """The scale is made too large for some rows: the others keep theirs, and all come out right."""
    model = make().half()
    expected = found_by_row(copy.deepcopy(model).float(), rows, False)
    scales = torch.tensor([2.0**8, 2.0**22, 2.0**8, 2.0**8, 2.0**22])
    monkeypatch.setattr("dataflex.scoring.gradients.per_row.row_scales", lambda *_, **__: scales.clone())
    seen = []
    monkeypatch.setattr(
        Whole, "clear", lambda sink, clear=Whole.clear: (seen.append(sink.scales_B.tolist()), clear(sink))
    )
    require_close(found_by_row(model, rows, False), expected)
    assert seen
    assert {(row[0], row[2], row[3]) for row in seen} == {(2.0**8,) * 3}


def enlarging(module, args):
    """Gradients of what the output layer is given are 2 million times larger."""
    if args[0].requires_grad:
        args[0].register_hook(lambda grad: grad * 2e3 * 1e3)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_what_overflows_without_a_scale_is_refused(make, rows):
    model = make().half()
    model.get_output_embeddings().register_forward_pre_hook(enlarging)
    with pytest.raises(ComponentError, match=r"the gradient of a row is NaN or infinite -> .* bf16"):
        found_by_row(model, rows, False)


@pytest.mark.parametrize("factor", [1e-4, 300.0])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_trial_takes_a_model_whose_gradients_are_small_or_large(make, factor, rows, monkeypatch):
    model = with_output(make(), factor).half()
    plans = []
    monkeypatch.setattr("dataflex.scoring.gradients.plan.Plan.distrust", lambda self, found: plans.append(list(found)))
    try_gradients(model, rows, pad_collate, None)
    assert not plans


def test_where_ranks_share_the_weights_no_row_comes_again(rows, monkeypatch):
    monkeypatch.setattr("dataflex.scoring.gradients.plan.is_compiled", lambda model: True)
    model = lora().half()
    expected = found_by_row(copy.deepcopy(model).float(), rows, False)
    require_close(found_by_row(model, rows, False), expected)
    cleared = []
    monkeypatch.setattr(Whole, "clear", lambda sink: cleared.append(sink))
    model.get_output_embeddings().register_forward_pre_hook(enlarging)
    with pytest.raises(ComponentError, match="NaN or infinite"):
        found_by_row(model, rows, False)
    assert not cleared
