"""Weights from losses that are compared: trim, focal, and the schedule, scope and level of loss."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from dataflex.config.arguments import DataflexArguments
from dataflex.core.errors import ConfigError
from dataflex.core.registry import register_weighter
from dataflex.rows.views import MixedSources
from dataflex.testing import TokenRows
from dataflex.train.weighter.base_weighter import Weighter
from dataflex_weighters.focal import FocalWeighter, focal_weights
from dataflex_weighters.loss import LossWeighter, annealed, sample_weights, source_level_weights
from dataflex_weighters.parts.compared_samples import compared, rows_with_labels
from dataflex_weighters.trim import TrimWeighter, trimmed
from hypothesis import given
from hypothesis import strategies as st
from weighted_run import weighted

LOSSES = [0.5, 4.0, 1.25, 2.0, 3.5]


def context(**more):
    return SimpleNamespace(accelerator=SimpleNamespace(num_processes=1, process_index=0), **more)


def batch(rows, unlabelled=()):
    labels = torch.full((rows, 4), 7)
    labels[list(unlabelled)] = -100
    return {"input_ids": torch.ones(rows, 4, dtype=torch.long), "labels": labels}


def weights_of(weighter, losses, inputs=None, ctx=None):
    """The weights as the trainer derives them."""
    losses = torch.tensor(losses, requires_grad=True)
    weighter.get_weighted_loss(losses, ctx=ctx or context(), inputs=inputs or batch(len(losses))).backward()
    return (losses.grad * len(losses)).tolist()


@given(losses=st.lists(st.floats(0, 50, width=32), max_size=30), share=st.floats(0, 0.99))
def test_trim_leaves_out_the_highest_losses_and_no_more_than_the_share(losses, share):
    weights = trimmed(torch.tensor(losses), share).tolist()
    out = [loss for loss, weight in zip(losses, weights, strict=True) if weight == 0]
    kept = [loss for loss, weight in zip(losses, weights, strict=True) if weight == 1]
    assert len(out) + len(kept) == len(losses)
    assert share * len(losses) - 1 < len(out) <= share * len(losses) + 1e-6
    assert not out or not kept or min(out) >= max(kept)


def test_trim_counts_a_share_as_a_person_does():
    assert trimmed(torch.arange(10.0), 0.3).tolist() == [1] * 7 + [0] * 3
    assert trimmed(torch.full((4,), 2.0), 0.5).tolist() == [1, 1, 0, 0]


def test_trim_weighs_the_rest_one_or_with_mean_one():
    assert weights_of(TrimWeighter(0.4), LOSSES) == [1, 0, 1, 1, 0]
    assert weights_of(TrimWeighter(0.4, normalise=True), LOSSES) == pytest.approx([5 / 3, 0, 5 / 3, 5 / 3, 0])
    assert weights_of(TrimWeighter(0.0), LOSSES) == [1] * 5


def test_trim_does_not_count_rows_without_labels():
    losses = [0.0, 0.0, 1.0, 2.0]
    assert weights_of(TrimWeighter(0.5), losses, batch(4, unlabelled=(0, 1))) == [0, 0, 1, 0]


def test_focal_is_its_formula_and_a_constant():
    expected = [(1 - math.exp(-loss)) ** 2 for loss in LOSSES]
    assert weights_of(FocalWeighter(), LOSSES) == pytest.approx(expected, rel=1e-5)
    assert weights_of(FocalWeighter(0.0), LOSSES) == [1] * 5
    scaled = weights_of(FocalWeighter(normalise=True), LOSSES)
    assert scaled == pytest.approx([e * 5 / sum(expected) for e in expected], rel=1e-5)


def test_focal_keeps_its_precision_for_tiny_losses():
    assert focal_weights(torch.tensor([1e-6]), 1.0).item() == pytest.approx(1e-6, rel=1e-4)


def test_focal_with_all_losses_zero_has_no_nan():
    assert weights_of(FocalWeighter(normalise=True), [0.0, 0.0]) == [0, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrimWeighter(1.0), "share of the trim weighter: found 1.0, allowed: .* below 1"),
        (lambda: TrimWeighter(-0.1, scope="steps"), "(?s)2 problems.*share.*scope.*did you mean 'step'"),
        (lambda: FocalWeighter(-1, normalise=None), "(?s)2 problems.*gamma of the focal weighter: found -1.*normalise"),
        (lambda: LossWeighter(temperature_start=0), "temperature_start of the loss weighter: found 0"),
        (lambda: LossWeighter(scope="rank", level="token"), "(?s)scope.*batch | step.*level.*sample | source"),
    ],
)
def test_a_bad_parameter_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_temperature_falls_by_the_same_factor_in_each_step():
    found = [annealed(8.0, 1.0, done / 3) for done in range(4)]
    assert found == pytest.approx([8, 4, 2, 1])
    assert annealed(None, 0.7, 0.5) == 0.7
    assert annealed(8.0, 1.0, -1) == 8
    assert annealed(8.0, 1.0, 2) == pytest.approx(1)


def test_loss_uses_the_temperature_of_its_step_from_the_end_of_the_warm_up():
    weighter = LossWeighter(temperature=0.5, temperature_start=8.0)
    for step, expected in ((2, 8.0), (4, 2.0), (6, 0.5)):
        ctx = context(arguments=DataflexArguments(warmup_step=2), state=SimpleNamespace(global_step=step, max_steps=7))
        found = weights_of(weighter, LOSSES, ctx=ctx)
        assert found == pytest.approx(sample_weights(torch.tensor(LOSSES), "linupper", 1.0, expected).tolist())


def test_sources_are_compared_by_their_means_and_share_a_weight():
    losses, sources = torch.tensor([1.0, 3.0, 5.0, 1.0]), torch.tensor([4, 4, 0, 2])
    weights = source_level_weights(losses, sources, "linupper")
    assert weights[0] == weights[1]
    assert weights.mean().item() == pytest.approx(1)
    by_source = sample_weights(torch.tensor([5.0, 1.0, 2.0]), "linupper")  # sources 0, 2, 4
    ratio = (weights[2] / weights[0]).item()
    assert ratio == pytest.approx((by_source[0] / by_source[2]).item())
    one = source_level_weights(losses, torch.zeros(4, dtype=torch.long), "linupper")
    assert one.tolist() == [1] * 4


@register_weighter("remembers_compared")
class RemembersCompared(Weighter):
    def __init__(self, scope, sources=False):
        super().__init__()
        self.scope, self.sources, self.seen = scope, sources, []

    def get_weighted_loss(self, losses, *, ctx, model, inputs):
        labelled = rows_with_labels(inputs, len(losses), losses.device)
        found = compared(losses, labelled, ctx, self.scope, self.sources)
        self.seen.append((ctx.state.global_step, found, losses.detach(), ctx.batch_rows))
        return losses.mean()


def run(folder, params, name="remembers_compared", rows=None, **args):
    rows = TokenRows(24, lengths=range(6, 15)) if rows is None else rows
    done = weighted(folder, name, params, rows, max_steps=2, **args)
    done.train()
    return done


def test_a_step_is_compared_whole_and_each_micro_batch_finds_its_own_place(tmp_path):
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    seen = run(tmp_path, {"scope": "step"}, **sizes).component.seen
    assert len(seen) == 8
    for step in (0, 1):
        parts = [entry for entry in seen if entry[0] == step]
        together = torch.cat([losses for _, _, losses, _ in parts])
        for _, found, losses, _ in parts:
            torch.testing.assert_close(found.losses, together, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(found.losses[found.own], losses, rtol=1e-5, atol=1e-6)
        assert [found.own for _, found, _, _ in parts] == [slice(i, i + 2) for i in (0, 2, 4, 6)]


def test_weights_over_the_step_do_not_depend_on_how_it_is_split(tmp_path):
    ends, plain = [], {"optim": "sgd", "learning_rate": 0.3}  # Adam would turn rounding into whole steps
    for size in (8, 4, 1):
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size} | plain
        done = run(tmp_path / str(size), {"scope": "step"}, "loss", **sizes)
        ends.append(done.model.lm_head.weight.detach())
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-4, atol=1e-5)
    split = run(
        tmp_path / "b", {"scope": "batch"}, "loss", per_device_train_batch_size=1, gradient_accumulation_steps=8
    )
    assert not torch.allclose(split.model.lm_head.weight, ends[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scope", ["batch", "step"])
def test_sources_stand_beside_their_losses(tmp_path, scope):
    rows = {"a": TokenRows(6, lengths=8), "b": TokenRows(18, lengths=8, seed=1)}
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    done = run(tmp_path, {"scope": scope, "sources": True}, rows=rows, **sizes)
    assert done.training_objective.context.source_names == ("a", "b")
    for _, found, _, numbers in done.component.seen:
        assert found.sources[found.own].tolist() == [int(number >= 6) for number in numbers.tolist()]


def test_a_source_level_run_trains(tmp_path):
    rows = MixedSources({"a": TokenRows(6, lengths=8), "b": TokenRows(18, lengths=8, seed=1)})
    done = run(tmp_path, {"level": "source", "scope": "step"}, "loss", rows=rows, gradient_accumulation_steps=2)
    assert done.state.global_step == 2
