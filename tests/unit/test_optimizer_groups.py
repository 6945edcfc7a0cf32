"""A row's influence is that of the optimizer's own step, in which each group has a learning rate of its own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ComponentError
from dataflex.scoring import TargetSet, influences, learning_rates, per_sample_gradients, target_means
from dataflex.scoring.optimizer_groups import parameter_groups, times_rates
from dataflex.testing import TokenRows, tiny_batch
from dataflex_selectors.cluster_less import ClusterLessSelector
from dataflex_selectors.less import LessSelector
from dataflex_selectors.parts.gradient_scores import FORMS, GradientScores
from every_component import run_objects
from test_gradients import all_at_once, one_by_one
from test_gradients import lora as any_lora
from test_influence import explicit, row_pass, unit
from torch import nn

RATIO = 16.0  # of LoRA+
RATE = 1e-3


def lora() -> nn.Module:
    torch.manual_seed(0)
    return any_lora()


def lora_plus(model: nn.Module, kind=torch.optim.AdamW, **options) -> torch.optim.Optimizer:
    """The groups that LLaMA-Factory makes for ``loraplus_lr_ratio: 16``."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if "lora_B" not in name], "lr": RATE},
        {"params": [p for name, p in named if "lora_B" in name], "lr": RATIO * RATE},
        {"params": [], "lr": 5.0},
    ]
    return kind(groups, **options)


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> torch.optim.Optimizer:
    for seed in range(steps):
        rows = TokenRows(4, vocab_size=64, seed=seed)
        model(**tiny_batch([rows[i] for i in range(4)])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def true_steps(model: nn.Module, optimizer: torch.optim.Optimizer, rows) -> torch.Tensor:
    """What the optimizer itself subtracts from the weights for each row alone: (N, P)."""
    gradients = one_by_one(model, rows)
    found = []
    for own in gradients:
        twin, its_optimizer = copy.deepcopy((model, optimizer))
        before = {name: p.detach().clone() for name, p in twin.named_parameters() if p.requires_grad}
        for name, p in twin.named_parameters():
            if p.requires_grad:
                p.grad = own[name]
        its_optimizer.step()
        after = dict(twin.named_parameters())
        found.append(torch.cat([(p - after[name].detach()).flatten() for name, p in sorted(before.items())]))
    return torch.stack(found).double()


def true_influences(model, optimizer, rows, target) -> np.ndarray:
    return (unit(true_steps(model, optimizer, rows)) @ unit(explicit(all_at_once(model, target))).mean(0)).cpu().numpy()


def context(optimizer) -> UpdateContext:
    return UpdateContext(0, 1, 3, 9, RATE, optimizer)


def less(rows, target, tmp_path, **params) -> LessSelector:
    made = LessSelector(**run_objects(rows, target, folder=tmp_path), **{"token_budget": 64} | params)
    made.bind("less", 7)
    return made


@pytest.fixture(scope="module")
def rows() -> TokenRows:
    return TokenRows(120, vocab_size=64, lengths=range(4, 16), seed=2)


@pytest.fixture(scope="module")
def target() -> TokenRows:
    return TokenRows(6, vocab_size=64, lengths=range(4, 16), seed=3)


KINDS = {"adam": (torch.optim.AdamW, {"weight_decay": 0.0, "eps": 1e-12}), "sgd": (torch.optim.SGD, {})}


@pytest.mark.parametrize("form", FORMS)
def test_less_scores_by_the_step_that_loraplus_takes(form, rows, target, tmp_path):
    kind, options = KINDS[form]
    model = lora()
    optimizer = stepped(model, lora_plus(model, kind, **options))
    expected = true_influences(model, optimizer, rows, target)
    found = less(rows, target, tmp_path, gradient_type=form).scores(model, 3, context=context(optimizer))
    error = 1 - np.corrcoef(found, expected)[0, 1]
    assert error < 1e-5
    assert set(np.argsort(-found)[:24]) == set(np.argsort(-expected)[:24])
    flat = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])  # equal rates: the test can fail
    flat.state = optimizer.state
    other = less(rows, target, tmp_path, gradient_type=form).scores(model, 3, context=context(flat))
    assert 1 - np.corrcoef(other, expected)[0, 1] > 100 * error


def test_a_sketch_and_representatives_follow_the_rates_too(rows, target, tmp_path):
    model = lora()
    optimizer = stepped(model, lora_plus(model))
    whole = less(rows, target, tmp_path).scores(model, 3, context=context(optimizer))
    sketched = less(rows, target, tmp_path, proj_dim=4096).scores(model, 3, context=context(optimizer))
    assert np.abs(sketched - whole).max() < 5 / 4096**0.5
    every = ClusterLessSelector(
        **run_objects(rows, target, folder=tmp_path), clusters=4, representatives=120, token_budget=64
    )
    every.bind("cluster_less", 7)
    assert np.corrcoef(every.scores(model, 3, context=context(optimizer)), whole)[0, 1] > 0.9999
    plain = less(rows, target, tmp_path, gradient_type="sgd").scores(model, 3, context=context(optimizer))
    projected = less(rows, target, tmp_path, gradient_type="sgd", factor_dim=16)
    assert np.corrcoef(projected.scores(model, 3, context=context(optimizer)), plain)[0, 1] > 0.8


def test_a_group_with_rate_0_does_not_count_and_a_warm_up_at_0_goes_by_the_rates_to_come(rows, target):
    model = lora()
    optimizer = lora_plus(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    with per_sample_gradients(model) as gradients:
        routes = gradients.routes
        rates = learning_rates(optimizer, routes)
        assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0, 0.0]
        assert {rates[r.index] for r in routes if "lora_B" in r.name} == {1.0}
        assert {rates[r.index] for r in routes if "lora_A" in r.name} == {1 / RATIO}
        optimizer.step()
        scheduler.step()
        assert learning_rates(optimizer, routes) == pytest.approx(rates)
        optimizer.param_groups[0]["lr"] = 0.0
        rates = learning_rates(optimizer, routes)
        means = target_means(gradients, model, [TargetSet("eval", target)], row_pass(None))
        found = influences(gradients, model, means, row_pass(rows), times_rates(None, rates))
        only_b = [r for r in routes if "lora_B" in r.name]
    assert {rates[r.index] for r in routes if "lora_A" in r.name} == {0.0}
    steps = {r.name: all_at_once(model, rows)[r.name] for r in only_b}
    mean = unit(explicit(all_at_once(model, target))).mean(0)
    names_of_all = sorted(r.name for r in routes)
    sizes = {r.name: r.numel for r in routes}
    kept = torch.cat([torch.full((sizes[name],), name in steps) for name in names_of_all])
    np.testing.assert_allclose(found[:, 0], unit(explicit(steps)) @ mean[kept], rtol=1e-4, atol=1e-6)


def test_equal_rates_change_no_bit():
    model = lora()
    direction = object()
    with per_sample_gradients(model) as gradients:
        for rate in (0.0, 1e-30, 1e-3):
            optimizer = torch.optim.SGD(list(model.parameters()), lr=rate)
            assert times_rates(direction, learning_rates(optimizer, gradients.routes)) is direction
        assert times_rates(None, learning_rates(None, gradients.routes)) is None


class ZeroTwo:
    """DeepSpeed's optimizer as far as it is read: flat pieces in the groups of what it wraps."""

    __module__ = "deepspeed.runtime.zero.stage_1_and_2"

    def __init__(self, optimizer: torch.optim.Optimizer, parts: list[list[nn.Parameter]], **kept) -> None:
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            group["params"] = [nn.Parameter(torch.zeros(3))]
        vars(self).update(kept or {"bit16_groups": parts})


def test_deepspeed_says_which_parameters_its_flat_pieces_are_made_of():
    model = lora()
    plain = lora_plus(model)
    parts = [list(group["params"]) for group in plain.param_groups]
    with per_sample_gradients(model) as gradients:
        expected = learning_rates(plain, gradients.routes)
        assert learning_rates(ZeroTwo(lora_plus(model), parts), gradients.routes) == expected
        cut = [parts[0][:2], parts[0][2:], parts[1], parts[2]]  # stage 3 keeps parts of groups
        three = ZeroTwo(lora_plus(model), parts, fp16_groups=cut, sub_group_to_group_id={0: 0, 1: 0, 2: 1, 3: 2})
        assert learning_rates(three, gradients.routes) == expected
        with pytest.raises(ComponentError, match=r"different learning rates.*lora.*cannot be told.*loraplus_lr_ratio"):
            learning_rates(ZeroTwo(lora_plus(model), parts, something_new=cut), gradients.routes)
    assert parameter_groups(None) == {}


@pytest.mark.parametrize("form", FORMS)
def test_a_pass_that_was_interrupted_under_other_rates_is_not_taken_up(form, rows, target, tmp_path):
    model = lora()
    selector = less(rows, target, tmp_path, gradient_type=form)
    scoring = GradientScores(selector, selector.settings, selector.targets, context(lora_plus(model)))
    with per_sample_gradients(model) as gradients:
        found = {
            scoring._store(model, gradients.routes, rates, np.arange(3))._pass_folder()
            for rates in ({0: 1.0, 1: 1.0}, {0: 1.0, 1: 0.5}, {0: 0.5, 1: 1.0})
        }
    assert len(found) == 3
