"""A trainable layer that no row of a batch reaches has a gradient of 0, wherever gradients are looked at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataflex.core.errors import ComponentError
from dataflex.core.kinds import SELECTOR, WEIGHTER
from dataflex.rows.views import MixedSources
from dataflex.scoring import (
    AdamDirection,
    FactoredAdam,
    Sketch,
    TargetSet,
    gradient_features,
    influences,
    per_sample_gradients,
    read_moments,
    target_means,
)
from dataflex.scoring.gradients.sinks import Whole
from dataflex.testing import TokenRows, device, pad_collate, tiny_batch, tiny_model
from dataflex_selectors.parts.derivatives import METHODS
from every_component import asking_for, installed, made, scores
from test_gradients import batch_of, lora, only
from test_influence import explicit, row_pass, unit
from torch import nn
from weighted_run import weighted

DEVICE = device()
MARK = 63  # rows with this token reach the branch
TO_TARGET = asking_for(SELECTOR, "eval_dataset")

# torch compiles its formulas of forward mode with a tool of its own that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


class Branch(nn.Module):
    """A layer in front of another that only some rows reach, and that is not called where none does."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.extra = layer, nn.Linear(32, 32)
        self.reached: torch.Tensor

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.reached.any():
            return self.layer(hidden)
        return self.layer(hidden + torch.where(self.reached[:, None, None], self.extra(hidden), 0.0))


def branched(model: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    branch = Branch(model.model.layers[0].mlp)
    model.model.layers[0].mlp = branch

    def look(module: nn.Module, args, kwargs) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        branch.reached = (ids == MARK).any(dim=1)

    model.register_forward_pre_hook(look, with_kwargs=True)
    return model


def with_unused(model: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    model.unused = nn.Linear(32, 16)
    return model


def marked(row: dict) -> dict:
    tokens = [MARK, *row["input_ids"][1:]]
    return row | {"input_ids": tokens, "labels": [-100, -100, *tokens[2:]]}


@pytest.fixture(scope="module")
def text() -> list[dict]:
    rows = TokenRows(8, vocab_size=62, lengths=range(4, 16), seed=3)
    return [rows[i] for i in range(8)]


@pytest.fixture(scope="module")
def mixed() -> list[dict]:
    rows = TokenRows(20, vocab_size=62, lengths=range(4, 16), seed=2)
    return [marked(rows[i]) if i % 3 == 0 else rows[i] for i in range(20)]


def stepped(model: nn.Module, rows: list[dict], kind=torch.optim.AdamW, **options) -> torch.optim.Optimizer:
    optimizer = kind([p for p in model.parameters() if p.requires_grad], lr=1e-3, **options)
    for _ in range(3):
        model(**tiny_batch(rows[:4])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def by_autograd(model: nn.Module, rows: list[dict]) -> dict[str, torch.Tensor]:
    """Each row alone, zeros where autograd gives no gradient: name -> (N, D)."""
    model.eval()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found: dict[str, list[torch.Tensor]] = {name: [] for name in parameters}
    for row in rows:
        loss = model(**tiny_batch([row])).loss
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for (name, parameter), grad in zip(parameters.items(), grads, strict=True):
            found[name].append((torch.zeros_like(parameter) if grad is None else grad).flatten())
    return {name: torch.stack(rows) for name, rows in found.items()}


def adam_by_hand(optimizer, model, gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        if name not in gradients:
            continue
        state, grads = optimizer.state.get(parameter, {}), gradients[name].double()
        first, second = (state.get(key, torch.zeros(())).flatten().double() for key in ("exp_avg", "exp_avg_sq"))
        t = int(state.get("step", 0)) + 1
        up, down = 0.9 * first + 0.1 * grads, 0.999 * second + 0.001 * grads**2
        found[name] = (up / (1 - 0.9**t)) / ((down / (1 - 0.999**t)).sqrt() + 1e-8)
    return found


@pytest.mark.parametrize("make", [branched, with_unused])
@pytest.mark.parametrize("form", ["sgd", "adam"])
@pytest.mark.parametrize("token_budget", [1, 64, 10**6])
def test_influence_takes_it_for_0_whatever_the_batches(make, form, token_budget, mixed, text):
    model = make(tiny_model(vocab_size=64))
    optimizer = stepped(model, text)
    target = [*text[:3], *mixed[:4]] if make is branched else text
    rows, options = mixed, {"token_budget": token_budget}
    with per_sample_gradients(model) as gradients:
        moments = read_moments(optimizer, gradients.routes)
        direction = AdamDirection(moments) if form == "adam" else None
        means = target_means(gradients, model, [TargetSet("eval", target)], row_pass(None))
        pass_ = row_pass(rows)
        found = influences(
            gradients, model, means, type(pass_)(rows, pad_collate, progress=False, **options), direction
        )
    steps = by_autograd(model, rows)
    if form == "adam":
        steps = adam_by_hand(optimizer, model, steps)
    expected = unit(explicit(steps)) @ unit(explicit(by_autograd(model, target))).mean(0)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-3, atol=1e-6)


def test_a_layer_that_steps_have_reached_goes_on_by_its_moments_in_any_batch(mixed, text):
    model = branched(tiny_model(vocab_size=64))
    optimizer = stepped(model, mixed)  # the branch has moments, and rows of text do not reach it
    with per_sample_gradients(model) as gradients:
        direction = AdamDirection(read_moments(optimizer, gradients.routes))
        means = target_means(gradients, model, [TargetSet("eval", mixed)], row_pass(None))
        alone = influences(gradients, model, means, row_pass(text), direction)
        together = influences(gradients, model, means, row_pass([*text, *mixed]), direction)[: len(text)]
        sketch = Sketch([route.size for route in gradients.routes], 2048, 5, DEVICE)
        features = gradient_features(gradients, model, row_pass(text), sketch, direction)
        again = gradient_features(gradients, model, row_pass([*text, *mixed]), sketch, direction)[: len(text)]
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(features, again, rtol=1e-3, atol=1e-6)
    steps = adam_by_hand(optimizer, model, by_autograd(model, text))
    assert steps["model.layers.0.mlp.extra.weight"].abs().sum() > 0
    expected = unit(explicit(steps)) @ unit(explicit(by_autograd(model, mixed))).mean(0)
    np.testing.assert_allclose(alone[:, 0], expected, rtol=1e-3, atol=1e-6)


def test_a_projected_layer_without_moments_steps_as_far_as_adam_would_at_first(mixed, text):
    model = only(branched(tiny_model(vocab_size=64)), "extra.weight")
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.state[model.lm_head.weight] = {"step": torch.tensor(1.0)}  # of a parameter that is frozen by now
    reached = [row for row in mixed if MARK in row["input_ids"]]
    with per_sample_gradients(model, factor_dim=16) as gradients:
        moments = read_moments(optimizer, gradients.routes)
        assert {route.size for route in gradients.routes} == {16 * 16}
        sink = Whole(len(reached), DEVICE, FactoredAdam(moments, gradients.factors))
        gradients.backward(batch_of(reached), sink)
    np.testing.assert_allclose(sink.squares_B.sqrt(), 32, rtol=0.05)  # |sign(g)| of 32 x 32 numbers


@pytest.mark.parametrize("name", TO_TARGET)
@pytest.mark.parametrize("make", [branched, with_unused])
def test_every_selector_with_a_target_scores_all_rows(name, make, mixed, text):
    model = make(tiny_model(vocab_size=512))
    optimizer = stepped(model, text)
    found = scores(made(SELECTOR, name, dataset=mixed, eval_dataset=text), model, optimizer)
    assert np.isfinite(found).all()
    assert len(set(found.tolist())) > 1


@pytest.mark.parametrize("method", METHODS)
def test_directions_along_an_unused_layer_change_no_loss(method, mixed, text):
    model = with_unused(tiny_model(vocab_size=64))
    model.requires_grad_(False)
    model.unused.requires_grad_(True)
    selector = made(SELECTOR, "zeroth", {"method": method}, dataset=mixed, eval_dataset=text)
    assert (scores(selector, model) == 0).all()


@pytest.mark.parametrize("name", installed(WEIGHTER))
def test_every_weighter_trains_as_if_it_were_not_there(name, mixed, text, tmp_path):
    if name in ("rho_tokens", "spans"):
        pytest.skip("needs a reference model, or markers; weights of tokens are those of token_column here")

    def given(row, weight):
        return row | {"weight": weight, "token_weights": [weight] * len(row["input_ids"])}

    sources = MixedSources({"a": [given(row, 0.5) for row in mixed], "b": [given(row, 2.0) for row in text]})
    params = {"column": {"column": "weight"}, "dataset": {"weights": {"a": 2.0}}}.get(name)
    ends = []
    for make in (with_unused, lambda model: model):
        trainer = weighted(
            tmp_path, name, params, sources, model=make(tiny_model(vocab_size=64)), target=text, max_steps=3
        )
        trainer.train()
        ends.append({key: value for key, value in trainer.model.state_dict().items() if "unused" not in key})
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_moments_of_an_optimizer_that_has_other_parameters_cannot_be_read(text):
    model = lora()
    flat = nn.Parameter(torch.zeros(7))  # as FSDP 1 has it
    optimizer = torch.optim.AdamW([flat])
    for stepped_before in (False, True):
        with (
            per_sample_gradients(model) as gradients,
            pytest.raises(ComponentError, match=r"has no parameter .*lora.*FSDP 1 flattens"),
        ):
            read_moments(optimizer, gradients.routes)
        flat.grad = torch.ones(7)
        optimizer.step()
        assert stepped_before or optimizer.state


def test_moments_of_a_projection_are_told_from_missing_ones():
    model = lora()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for parameter in optimizer.param_groups[0]["params"]:
        low = torch.zeros(2, 3)
        optimizer.state[parameter] = {"step": torch.tensor(1.0), "exp_avg": low, "exp_avg_sq": low}
    with per_sample_gradients(model) as gradients, pytest.raises(ComponentError, match=r"6 numbers, needed.*GaLore"):
        read_moments(optimizer, gradients.routes)
