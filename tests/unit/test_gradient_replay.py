"""Gradients of rows through layers of any kind equal autograd's of one row at a time; rows that mix are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from dataflex.core.errors import ComponentError
from dataflex.scoring import per_sample_gradients
from dataflex.scoring.gradients.sinks import Whole
from dataflex.scoring.trial import try_gradients
from dataflex.testing import TokenRows, device, pad_collate, tiny_model
from peft import LoraConfig, get_peft_model
from test_gradients import batch_of, moved
from torch import nn

WIDTH, EXPERTS = 32, 4


class Squared(nn.Module):
    """Not affine in its vector."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH) * 0.5)

    def forward(self, hidden):
        return hidden * self.weight**2


class Router(nn.Module):
    """Gives two outputs of which one comes from the other, flattened, and changes one in place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH))

    def forward(self, hidden):
        logits = F.linear(hidden.reshape(-1, WIDTH), self.weight)
        values, index = logits.softmax(-1).topk(2)
        values /= values.sum(-1, keepdim=True)
        return {"logits": logits, "weights": values, "index": index, "nothing": None}


class Stacked(nn.Module):
    """Experts in one parameter of three dimensions; tokens of all rows meet in one product per expert."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH) * 0.2)

    def forward(self, hidden, *, index, weights):
        total = torch.zeros_like(hidden)
        for expert in range(EXPERTS):
            token, place = torch.where(index == expert)
            if len(token):  # an expert that no token goes to is not reached
                found = F.silu(hidden[token] @ self.up[expert]) * weights[token, place, None]
                total.index_add_(0, token, found.to(total.dtype))
        return total


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = Router(), Stacked()

    def forward(self, hidden):
        routed = self.router(hidden=hidden)
        flat = self.experts(hidden.reshape(-1, WIDTH), index=routed["index"], weights=routed["weights"])
        return flat.view_as(hidden) + 0.01 * routed["logits"].sum(-1).view(*hidden.shape[:2], 1)


class Listed(nn.Module):
    """Experts in a list of linear layers, each of which sees some tokens of some rows."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))

    def forward(self, hidden):
        flat = hidden.reshape(-1, WIDTH)
        weights, index = self.router(flat).softmax(-1).topk(2)
        total = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            place, token = torch.where(number == index.T)
            if len(token):
                total.index_add_(0, token, expert(flat[token]) * weights[token, place, None])
        return total.view_as(hidden)


class ByTheParent(nn.Module):
    """Uses the weight of a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden):
        return F.linear(hidden, self.inner.weight.tanh(), self.inner.bias)


class TwiceUsed(nn.Module):
    """Calls a layer, and uses its weight without a call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden):
        return self.inner(hidden) + (hidden @ self.inner.weight).tanh()


class Heads(nn.Module):
    """A norm on transposed heads, (B, heads, T, D), with 1 + weight, as a nested tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.gate = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, hidden):
        heads = self.norm(hidden.view(*hidden.shape[:2], 4, 8).transpose(1, 2))
        return (heads * self.gate.sigmoid()).transpose(1, 2).reshape(hidden.shape)


class TimeFirst(nn.Module):
    """Linear layers that see (T, B, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden):
        return self.inner(hidden.transpose(0, 1)).transpose(0, 1)


class InPlace(nn.Module):
    """Changes in place what its layers returned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.ones(1, WIDTH, WIDTH) * 0.1)

    def forward(self, hidden):
        found = self.first(hidden)
        found += hidden
        return self.second(found).mul_(2) + found @ self.scale[0]


class Positions(nn.Module):
    """A table that is looked up once for all rows, without a dimension for them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, WIDTH)

    def forward(self, hidden):
        return hidden + self.table(torch.arange(hidden.shape[1], device=hidden.device))


class Scan(nn.Module):
    """A recurrence with a convolution, whose parameters are used in the call of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH, padding=2)
        self.decay = nn.Parameter(torch.randn(WIDTH))

    def forward(self, hidden):
        mixed = self.conv(hidden.transpose(1, 2))[..., : hidden.shape[1]].transpose(1, 2)
        state, states = torch.zeros_like(mixed[:, 0]), []
        for step in mixed.unbind(1):
            state = state * self.decay.sigmoid() + step
            states.append(state)
        return torch.stack(states, 1)


class Normed(nn.Module):
    """Batch norm takes its running statistics in eval mode, so that rows do not mix."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, hidden):
        return self.norm(hidden.transpose(1, 2)).transpose(1, 2)


class Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight):
        ctx.save_for_backward(hidden, weight)
        return hidden * weight

    @staticmethod
    def backward(ctx, grads):
        hidden, weight = ctx.saved_tensors
        return grads * weight, (grads * hidden).sum((0, 1))


class Fused(nn.Module):
    """Hands a layer's weight to a kernel, which is no operation of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, bias=False)

    def forward(self, hidden):
        return Kernel.apply(hidden, self.norm.weight)


class Stashed(nn.Module):
    """Leaves something behind for a layer that comes later, which no output of it tells."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(1, WIDTH, WIDTH) * 0.2)
        self.take: list[torch.Tensor] = []

    def forward(self, hidden):
        self.take[:] = [hidden @ self.up[0]]
        return hidden @ self.up[0].T


LAYERS = [Squared, Mixture, Listed, ByTheParent, TwiceUsed, Heads, TimeFirst, InPlace, Positions, Scan, Normed, Fused]


def with_layer(layer: type[nn.Module]) -> nn.Module:
    model = tiny_model(vocab_size=64)
    torch.manual_seed(4)
    model.model.layers[0].mlp = layer().to(device())
    return moved(model)


def whole(model: nn.Module, rows: TokenRows, **options) -> dict[str, torch.Tensor]:
    with per_sample_gradients(model, **options) as gradients:
        sink = Whole(len(rows), device())
        gradients.backward(batch_of(rows), sink)
        shapes = {route.index: (route.name, route.size) for route in gradients.routes}
    return {n: sink.vectors.get(i, torch.zeros(len(rows), size)) for i, (n, size) in shapes.items()}


def require_equal(found: dict[str, torch.Tensor], model: nn.Module, rows: TokenRows, names: str = "") -> None:
    expected = one_by_one_or_0(model, rows)
    largest = max(float(vectors.abs().max()) for vectors in expected.values())
    for name, vectors in expected.items():
        if names in name:
            np.testing.assert_allclose(found[name], vectors, rtol=1e-5, atol=3e-6 * largest, err_msg=name)


def one_by_one_or_0(model: nn.Module, rows: TokenRows) -> dict[str, torch.Tensor]:
    found: dict[str, list[torch.Tensor]] = {}
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    model.eval()
    for i in range(len(rows)):
        loss = model(**pad_collate([rows[i]])).loss
        for (name, p), grad in zip(
            named.items(), torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True
        ):
            found.setdefault(name, []).append((torch.zeros_like(p) if grad is None else grad).flatten())
    return {name: torch.stack(grads) for name, grads in found.items()}


@pytest.fixture(scope="module")
def rows() -> TokenRows:
    return TokenRows(5, vocab_size=64, lengths=[5, 17, 9, 3, 12])


@pytest.mark.parametrize("layer", LAYERS)
def test_any_layer_gives_autograds(layer, rows):
    model = with_layer(layer)
    require_equal(whole(model, rows), model, rows)


@pytest.mark.parametrize("layer", [Mixture, Listed, Positions])
@pytest.mark.parametrize("lengths", [[7], [6, 6], [4] * 4, [3, 11, 4, 4, 8]])
def test_in_batches_of_any_shape_once_two_rows_were_tried(layer, lengths, rows):
    model = with_layer(layer)
    try_gradients(model, rows, pad_collate, None)
    other = TokenRows(len(lengths), vocab_size=64, lengths=lengths, seed=sum(lengths))
    require_equal(whole(model, other), model, other)


@pytest.mark.parametrize("layer", [Mixture, TwiceUsed])
def test_a_projected_parameter_has_the_projection_of_its_whole_gradient(layer, rows):
    model = with_layer(layer)
    expected = one_by_one_or_0(model, rows)
    with per_sample_gradients(model, factor_dim=8) as gradients:
        sink = Whole(len(rows), device())
        gradients.backward(batch_of(rows), sink)
        for route in gradients.routes:
            if "mlp" in route.name and route.index in gradients.factors:
                whole_one = expected[route.name].view(-1, *route.shape)
                projected = torch.stack([gradients.factors[route.index].project(grad) for grad in whole_one])
                torch.testing.assert_close(sink.vectors[route.index], projected, rtol=1e-4, atol=1e-5)


def test_lora_on_experts_in_a_list_is_exact(rows):
    model = with_layer(Listed)
    config = LoraConfig(r=2, target_modules=r".*(q_proj|router|experts\.\d+)")
    adapted = moved(get_peft_model(model, config))
    require_equal(whole(adapted, rows), adapted, rows)


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")  # PEFT knows the parameter, not its layer
def test_lora_on_experts_in_one_parameter_is_exact(rows):
    model = tiny_model(vocab_size=64, kind="mixtral")
    if not any("experts.gate_up_proj" in name for name, _ in model.named_parameters()):
        pytest.skip("this transformers has its experts in lists")
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj"])
    adapted = moved(get_peft_model(model, config))
    require_equal(whole(adapted, rows), adapted, rows)


def test_what_a_layer_leaves_behind_for_another_is_found_by_the_trial(rows):
    model = with_layer(Stashed)
    stashed = model.model.layers[0].mlp
    after = model.model.layers[1].mlp
    plain = after.forward
    after.forward = lambda hidden: plain(hidden) + stashed.take[0]
    try_gradients(model, rows, pad_collate, None)
    require_equal(whole(model, rows), model, rows)


class Centred(nn.Module):
    """Takes the mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(1, WIDTH, WIDTH))

    def forward(self, hidden):
        return (hidden - hidden.mean(0, keepdim=True)) @ self.up[0]


class Capacity(nn.Module):
    """Drops the tokens that an expert has no room for, which depends on the other rows."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden):
        flat = hidden.reshape(-1, WIDTH)
        room = flat.new_zeros(len(flat), 1)
        room[: len(flat) // 2] = 1
        return (self.up(flat) * room).view_as(hidden)


@pytest.mark.parametrize("layer", [Centred, Capacity])
@pytest.mark.parametrize("trained", ["the layer", "another", "all"])
def test_rows_that_change_each_other_are_refused_by_the_name_of_the_layer(layer, trained, rows):
    model = with_layer(layer)
    for name, parameter in model.named_parameters():
        inside = "layers.0.mlp" in name
        parameter.requires_grad_(trained == "all" or inside == (trained == "the layer"))
    with pytest.raises(ComponentError, match=rf"change each other in model\.layers\.0\.mlp \({layer.__name__}\).* -> "):
        try_gradients(model, rows, pad_collate, None)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Pair(nn.Linear):
    """A layer that returns a tuple, which LoRA cannot wrap."""

    def forward(self, hidden):
        return super().forward(hidden), None


class Paired(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(WIDTH, WIDTH)

    def forward(self, hidden):
        return self.pair(hidden)[0]


def test_a_layer_that_fails_is_refused_by_name(rows):
    model = with_layer(Paired)
    require_equal(whole(model, rows), model, rows)
    adapted = get_peft_model(with_layer(Paired), LoraConfig(r=2, target_modules=["pair"]))
    with pytest.raises(ComponentError, match=r"the layer \S+mlp\.pair \(\w+\) fails.*'tuple'.*lora_target"):
        try_gradients(adapted, rows, pad_collate, None)


def test_layers_that_are_called_by_row_are_named_once(rows, caplog):
    model = with_layer(Mixture)
    with caplog.at_level("INFO", logger="dataflex"):
        whole(model, rows)
        whole(model, rows)
    lines = [record.message for record in caplog.records if "row by row" in record.message]
    assert len(lines) == 1
    assert "Router, Stacked, from model.layers.0.mlp.experts on" in lines[0]


def test_parameters_require_gradients_as_before(rows):
    model = with_layer(Mixture)
    model.model.layers[0].mlp.router.weight.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    try_gradients(model, rows, pad_collate, None)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_mixed_precision_comes_close(rows):
    AcceleratorState._reset_state(reset_partial_state=True)
    model = with_layer(Mixture)
    expected = one_by_one_or_0(model, rows)
    found = whole(model, rows, accelerator=Accelerator(cpu=True, mixed_precision="bf16"))
    AcceleratorState._reset_state(reset_partial_state=True)
    name = "model.layers.0.mlp.experts.up"
    assert found[name].dtype == torch.float32
    assert F.cosine_similarity(found[name], expected[name]).min() > 0.8
