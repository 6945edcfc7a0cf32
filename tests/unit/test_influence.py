"""Streamed influence equals the explicit computation; sketches estimate it without bias; Adam's form is Adam's."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dataflex.core.component import seeded
from dataflex.core.errors import ComponentError
from dataflex.scoring import (
    AdamDirection,
    RowPass,
    ScoreStore,
    Sketch,
    TargetSet,
    gradient_features,
    influences,
    per_sample_gradients,
    read_moments,
    target_means,
)
from dataflex.testing import TokenRows, device, pad_collate, tiny_batch
from test_gradients import all_at_once, lora, one_by_one

DEVICE = device()


@pytest.fixture(scope="module")
def rows() -> TokenRows:
    return TokenRows(23, vocab_size=64, lengths=range(4, 20), seed=1)


@pytest.fixture(scope="module")
def targets() -> list[TargetSet]:
    sizes = {"short": 5, "long": 9}
    return [TargetSet(name, TokenRows(n, vocab_size=64, lengths=range(4, 12), seed=n)) for name, n in sizes.items()]


@pytest.fixture(scope="module")
def trained():
    """A LoRA model and its optimizer after a few steps."""
    model = lora()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, betas=(0.8, 0.95))
    for seed in range(3):
        batch = tiny_batch([TokenRows(4, vocab_size=64, seed=seed)[i] for i in range(4)])
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def row_pass(dataset, **options) -> RowPass:
    return RowPass(dataset, pad_collate, token_budget=64, progress=False, **options)


def explicit(vectors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([vectors[name] for name in sorted(vectors)], dim=1).double()


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True)


def by_hand(model, optimizer, vectors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What one AdamW step from each row's gradient alone does, by running AdamW itself."""
    found = {name: torch.empty_like(v) for name, v in vectors.items()}
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    group = optimizer.param_groups[0]
    for name, parameter in parameters.items():
        state = optimizer.state[parameter]
        (beta1, beta2), eps, t = group["betas"], group["eps"], int(state["step"]) + 1
        for i, gradient in enumerate(vectors[name].double()):
            first = beta1 * state["exp_avg"].flatten().double() + (1 - beta1) * gradient
            second = beta2 * state["exp_avg_sq"].flatten().double() + (1 - beta2) * gradient**2
            found[name][i] = (first / (1 - beta1**t)) / ((second / (1 - beta2**t)).sqrt() + eps)
    return found


def one_step(optimizer, parameter, gradient) -> torch.Tensor:
    """How far the optimizer itself moves a parameter for a gradient alone, by letting a copy of it step."""
    copied = torch.nn.Parameter(parameter.detach().clone().double())
    alone = type(optimizer)([copied], lr=1.0, weight_decay=0.0)
    alone.state[copied] = {
        k: v.double() if k.startswith("exp") else v for k, v in copy.deepcopy(optimizer.state[parameter]).items()
    }
    before = copied.detach().clone()
    copied.grad = gradient.double().reshape(copied.shape)
    alone.step()
    return (before - copied.detach()).flatten()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam])
@pytest.mark.parametrize("size", [3e-6, 1e-2])
def test_the_direction_is_the_step_of_the_optimizer_where_gradients_are_small_too(kind, size):
    """With epsilon inside of the root, rows' order correlated 0.96 with that of torch's steps at a mean v of 1e-11."""
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(40, 50, generator=generator))
    scale = size * torch.exp(1.5 * torch.randn(40, 50, generator=generator))
    optimizer = kind([parameter], lr=1e-3)
    for _ in range(40):
        parameter.grad = scale * torch.randn(40, 50, generator=generator)
        optimizer.step()
    route = SimpleNamespace(index=0, parameter=parameter, numel=2000, name="w")
    grads_BD = (scale * torch.randn(30, 40, 50, generator=generator)).flatten(1)
    found_BD = AdamDirection(read_moments(optimizer, [route]))(route, grads_BD).double()
    steps_BD = torch.stack([one_step(optimizer, parameter, grad) for grad in grads_BD])
    cosines_B = torch.nn.functional.cosine_similarity(found_BD, steps_BD)
    target_D = torch.randn(2000, generator=generator, dtype=torch.float64)
    order = np.corrcoef(unit(found_BD) @ target_D, unit(steps_BD) @ target_D)[0, 1]
    assert cosines_B.min() > 0.9999
    assert order > 0.9999


@pytest.mark.parametrize("form", ["sgd", "adam"])
def test_streamed_influence_is_the_explicit_one(trained, rows, targets, form):
    model, optimizer = trained
    with per_sample_gradients(model) as gradients:
        direction = AdamDirection(read_moments(optimizer, gradients.routes)) if form == "adam" else None
        means = target_means(gradients, model, targets, row_pass(None))
        found = influences(gradients, model, means, row_pass(rows), direction)
    steps = all_at_once(model, rows)
    if form == "adam":
        steps = by_hand(model, optimizer, steps)
    expected = torch.stack(
        [unit(explicit(steps)) @ unit(explicit(all_at_once(model, t.dataset))).mean(0) for t in targets], dim=1
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert found.shape == (23, 2)


def test_adam_and_sgd_rank_rows_differently(trained, rows, targets):
    model, optimizer = trained
    with per_sample_gradients(model) as gradients:
        means = target_means(gradients, model, targets, row_pass(None))
        plain = influences(gradients, model, means, row_pass(rows))
        adam = influences(
            gradients, model, means, row_pass(rows), AdamDirection(read_moments(optimizer, gradients.routes))
        )
    assert not np.array_equal(np.argsort(plain[:, 0]), np.argsort(adam[:, 0]))


def test_groups_make_one_vector_of_the_sum_of_their_weighted_gradients(trained, rows):
    model, _ = trained
    dataset = TokenRows(6, vocab_size=64, lengths=range(4, 12), seed=9)
    weights, groups = np.array([0.5, -1.0, 2.0, 1.0, 0.25, 0.0]), np.array([3, 3, 3, 8, 8, 9])
    target = TargetSet("prompts", dataset, weights, groups, total=True)
    with per_sample_gradients(model) as gradients:
        means = target_means(gradients, model, [target], row_pass(None))
        found = influences(gradients, model, means, row_pass(rows))
    vectors = one_by_one(model, dataset, total=True)
    order = sorted(vectors[0])
    flat = torch.stack([torch.cat([v[name].flatten() for name in order]) for v in vectors]).double()
    weighted = flat * torch.from_numpy(weights).unsqueeze(1)
    mean = unit(torch.stack([weighted[:3].sum(0), weighted[3:5].sum(0)])).mean(0)  # the third prompt has no gradient
    expected = unit(explicit(all_at_once(model, rows))) @ mean
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_a_row_without_labels_has_no_influence_and_a_target_without_any_is_refused(trained, targets):
    model, optimizer = trained
    some = [TokenRows(3, vocab_size=64)[i] for i in range(3)]
    some[1]["labels"] = [-100] * len(some[1]["labels"])
    with per_sample_gradients(model) as gradients:
        means = target_means(gradients, model, targets, row_pass(None))
        direction = AdamDirection(read_moments(optimizer, gradients.routes))
        found = influences(gradients, model, means, row_pass(some), direction)
        with pytest.raises(ComponentError, match="no row of the target set 'empty' has a label"):
            target_means(gradients, model, [TargetSet("empty", [some[1]])], row_pass(None))
    assert np.isnan(found).any(axis=1).tolist() == [False, True, False]


def test_nan_weights_are_told(trained, rows, targets):
    model = copy.deepcopy(trained[0])
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(torch.nan)
    with per_sample_gradients(model) as gradients, pytest.raises(ComponentError, match="NaN or infinite"):
        target_means(gradients, model, targets, row_pass(None))


def test_sketched_cosines_are_unbiased_and_no_worse_than_a_dense_projection():
    generator = torch.Generator().manual_seed(0)
    sizes, dim, seeds = [700, 90, 1500], 64, 400
    x = torch.randn(2, sum(sizes), generator=generator) * torch.logspace(0, 1, sum(sizes))
    x[1] = 0.3 * x[0] + x[1]
    x = unit(x)
    exact = float(x[0] @ x[1])
    parts = list(x.split(sizes, dim=1))
    estimates, dense = [], []
    for seed in range(seeds):
        sketch = Sketch(sizes, dim, seed, DEVICE)
        features = sum(sketch.apply(index, part) for index, part in enumerate(parts))
        estimates.append(float(features[0] @ features[1]))
        signs = torch.randint(0, 2, (sum(sizes), dim), generator=generator) * 2.0 - 1
        projected = x @ signs / dim**0.5
        dense.append(float(projected[0] @ projected[1]))
    error = np.std(estimates) / seeds**0.5
    assert abs(np.mean(estimates) - exact) < 4 * error
    assert np.std(estimates) < 1.15 * np.std(dense)  # 1.15: what chance makes of 400 draws


def whole_map(size, dim, seed, index):
    """Slow and obvious: the (D, K) matrix of the sketch, from the same draws."""
    generator = torch.Generator().manual_seed(seeded(seed, "sketch", index, 0))
    stretches = -(-size // dim)
    signs = torch.randint(0, 2, (stretches, dim), generator=generator, dtype=torch.int8) * 2 - 1
    shifts = torch.randint(0, dim, (stretches, 1), generator=generator)
    matrix = torch.zeros(stretches * dim, dim)
    for stretch in range(stretches):
        for bucket in range(dim):
            place = (bucket - int(shifts[stretch])) % dim
            matrix[stretch * dim + place, bucket] = signs[stretch, place]
    return matrix[:size]


@pytest.mark.parametrize("at_once", [1, 50, 2**24])
@pytest.mark.parametrize("dim", [13, 16])
def test_the_sketch_is_its_matrix_however_much_of_it_is_unfolded_at_once(monkeypatch, at_once, dim):
    monkeypatch.setattr("dataflex.scoring.gradients.sketch.PART_NUMBERS", at_once)
    vectors = torch.randn(3, 200, generator=torch.Generator().manual_seed(2))
    found = Sketch([7, 200], dim, 5, DEVICE).apply(1, vectors)
    torch.testing.assert_close(found, vectors @ whole_map(200, dim, 5, 1))


def test_the_map_of_a_sketch_takes_less_than_a_fifth_of_a_byte_for_each_trainable_number():
    sizes = [300_000, 1000, 7777]
    assert Sketch(sizes, 128, 0, DEVICE).nbytes < 0.2 * sum(sizes)


def test_more_nonzeros_keep_it_unbiased():
    x = unit(torch.randn(1, 300, generator=torch.Generator().manual_seed(1)))
    norms = [float(Sketch([300], 32, seed, DEVICE, nonzeros=4).apply(0, x).square().sum()) for seed in range(300)]
    assert abs(np.mean(norms) - 1) < 4 * np.std(norms) / 300**0.5


def test_sketched_influence_comes_close_and_features_give_the_same(trained, rows, targets):
    model, _ = trained
    with per_sample_gradients(model) as gradients:
        sketch = Sketch([route.size for route in gradients.routes], 4096, 5, DEVICE)
        exact = influences(gradients, model, target_means(gradients, model, targets, row_pass(None)), row_pass(rows))
        means = target_means(gradients, model, targets, row_pass(None), sketch)
        found = influences(gradients, model, means, row_pass(rows), None, sketch)
        features = gradient_features(gradients, model, row_pass(rows), sketch)
    assert features.shape == (23, 4096)
    np.testing.assert_allclose(features @ means[0].cpu().numpy().T, found, rtol=1e-4, atol=1e-6)
    assert np.abs(found - exact).max() < 5 / 4096**0.5


def test_an_interrupted_pass_goes_on_and_gives_the_same(trained, rows, targets, tmp_path):
    model, _ = trained
    with per_sample_gradients(model) as gradients:
        means = target_means(gradients, model, targets, row_pass(None))
        whole = influences(gradients, model, means, row_pass(rows))

        class StoppedError(Exception): ...

        batches = []

        def stopping(batch):
            if len(batches) == 3:
                raise StoppedError
            batches.append(batch)
            return pad_collate(batch)

        stopped = RowPass(rows, stopping, token_budget=64, progress=False, store=ScoreStore(tmp_path, lambda: "k", 0.0))
        with pytest.raises(StoppedError):
            influences(gradients, model, means, stopped)
        batches.clear()
        counted = RowPass(
            rows, lambda batch: batches.append(batch) or pad_collate(batch), token_budget=64, progress=False,
            store=ScoreStore(tmp_path, lambda: "k", 0.0),
        )  # fmt: skip
        again = influences(gradients, model, means, counted)
        assert 0 < sum(map(len, batches)) < 23
        np.testing.assert_array_equal(again, whole)
        batches.clear()
        other = RowPass(
            rows, counted.collator, token_budget=64, progress=False, store=ScoreStore(tmp_path, lambda: "z")
        )
        np.testing.assert_array_equal(influences(gradients, model, means, other), whole)
        assert sum(map(len, batches)) == 23  # another key: nothing is taken from there


def test_moments_are_none_before_the_first_step_and_refused_where_there_are_none(trained):
    model = lora()
    parameters = [p for p in model.parameters() if p.requires_grad]
    with per_sample_gradients(model) as gradients:
        assert read_moments(torch.optim.AdamW(parameters), gradients.routes) is None
        assert read_moments(None, gradients.routes) is None
        sgd = torch.optim.SGD(parameters, momentum=0.9)
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        sgd.step()
        for parameter in parameters:
            parameter.grad = None
        with pytest.raises(ComponentError, match=r"SGD keeps no Adam moments.*gradient_type: sgd"):
            read_moments(sgd, gradients.routes)
