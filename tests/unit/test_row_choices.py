"""Routers that choose another expert for a row alone, because kernels round otherwise, are no rows that mix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from dataflex.core.errors import ComponentError
from dataflex.scoring import per_sample_gradients
from dataflex.scoring.gradients.sinks import Whole
from dataflex.scoring.trial import try_gradients
from dataflex.testing import TokenRows, device, pad_collate
from test_gradient_replay import EXPERTS, WIDTH, Stacked, with_layer
from test_gradients import batch_of, only
from torch import nn


class Router(nn.Module):
    """Its experts are nearly equal in rank, and its products round otherwise for each number of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH))

    def forward(self, hidden):
        weight = self.weight.mean(0, keepdim=True) + 1e-4 * self.weight
        logits = F.linear(hidden, weight) + 4
        noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(len(hidden)))
        logits = logits + torch.finfo(logits.dtype).eps / 2 * logits.abs() * noise.to(logits)
        return choose(logits)


def choose(logits):
    values, index = logits.softmax(-1).topk(2)
    return values / values.sum(-1, keepdim=True), index


class Mixture(nn.Module):
    """Is called by row in parts: the router, and the experts on what the router said."""

    router = Router

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = self.router(), Stacked()

    def forward(self, hidden):
        flat = hidden.reshape(-1, WIDTH)
        weights, index = self.gate(flat)
        return self.experts(flat, index=index, weights=weights).view_as(hidden)


class Listed(nn.Module):
    """Is called by row as a whole, router and all."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Router()
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))

    def forward(self, hidden):
        flat = hidden.reshape(-1, WIDTH)
        weights, index = self.gate(flat)
        total = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(index == number)
            if len(token):
                total.index_add_(0, token, expert(flat[token]) * weights[token, place, None])
        return total.view_as(hidden)


class Outermost(Listed):
    """Leaves its result behind for the next layer, so that the whole model goes by row."""

    take: list[torch.Tensor]

    def forward(self, hidden):
        self.take = [super().forward(hidden)]
        return self.take[0]


def outermost() -> nn.Module:
    model = with_layer(Outermost)
    stashed, after = model.model.layers[0].mlp, model.model.layers[1].mlp
    plain = after.forward
    after.forward = lambda hidden: plain(hidden) + stashed.take[0]
    return model


MODELS = {
    "in parts": lambda: with_layer(Mixture),
    "the layer": lambda: with_layer(Listed),
    "the whole model": outermost,
}


@pytest.fixture
def rows() -> TokenRows:
    return TokenRows(4, vocab_size=64, lengths=[7, 7, 7, 7])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_choice_that_rounding_changes_is_no_mixing(make, dtype, rows):
    model = only(make(), "mlp").to(dtype)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.1)  # so that these losses, all of them ties, lie close together
    try_gradients(model, rows, pad_collate, None)
    with per_sample_gradients(model) as gradients:
        sink = Whole(len(rows), device())
        gradients.backward(batch_of(rows), sink)
        assert sink.squares_B.isfinite().all()


class OfTheBatch(Router):
    """Which experts are free depends on the other rows."""

    def forward(self, hidden):
        logits = F.linear(hidden, self.weight)
        return choose(logits - logits.mean(0))


class Crowded(Mixture):
    router = OfTheBatch


def test_a_choice_that_hangs_on_the_other_rows_is_refused(rows):
    with pytest.raises(ComponentError, match=r"rows of a batch change each other in model\.layers\.0\.mlp\.gate"):
        try_gradients(with_layer(Crowded), rows, pad_collate, None)
