"""Projected gradients of large matrices are projections of the gradients, and estimate their inner products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dataflex.scoring import FactoredAdam, RowPass, TargetSet, influences, per_sample_gradients, target_means
from dataflex.scoring.gradients.adam import Moments
from dataflex.scoring.gradients.factors import Factors
from dataflex.scoring.gradients.sinks import Whole
from dataflex.testing import TokenRows, device, pad_collate, tiny_model
from test_gradients import all_at_once, batch_of, gpt2, tied

DEVICE = device()
MODELS = {"llama": lambda: tiny_model(vocab_size=64), "tied": tied, "transposed": gpt2}


@pytest.fixture(scope="module")
def rows() -> TokenRows:
    return TokenRows(6, vocab_size=64, lengths=[5, 17, 9, 17, 3, 12])


def projected(model, rows, dim, seed=0) -> dict[str, torch.Tensor]:
    with per_sample_gradients(model, factor_dim=dim, seed=seed) as gradients:
        sink = Whole(len(rows), DEVICE)
        gradients.backward(batch_of(rows), sink)
        assert gradients.factors
        found = {route.name: sink.vectors[route.index] for route in gradients.routes}
        sides = {route.name: gradients.factors.get(route.index) for route in gradients.routes}
        shapes = {route.name: route.shape for route in gradients.routes}
    return found, sides, shapes


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_they_are_projections_of_the_exact_ones(make, rows):
    model = make()
    exact = all_at_once(model, rows)
    found, factors, shapes = projected(model, rows, 8)
    assert any(factors[name] is None for name in found)  # norms stay whole
    for name, vectors in found.items():
        expected = exact[name]
        if factors[name] is not None:
            left, right = factors[name]._sides
            expected = (left @ expected.view(-1, *shapes[name]) @ right.T).flatten(1)
        np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max() + 1))


def test_inner_products_are_kept_on_average(rows):
    model = tiny_model(vocab_size=64)
    exact = torch.cat(list(all_at_once(model, rows).values()), dim=1)
    wanted = float(exact[0] @ exact[1])
    found = []
    for seed in range(60):
        vectors = torch.cat(list(projected(model, rows, 8, seed)[0].values()), dim=1)
        found.append(float(vectors[0] @ vectors[1]))
    assert abs(np.mean(found) - wanted) < 4 * np.std(found) / 60**0.5


def test_adam_is_folded_in_where_its_second_moment_is_a_product_of_rows_and_columns():
    generator = torch.Generator().manual_seed(0)
    rows_O, columns_I = torch.rand(6, generator=generator) + 0.5, torch.rand(5, generator=generator) + 0.5
    second, first = torch.outer(rows_O, columns_I), torch.randn(6, 5, generator=generator)
    moments = Moments(first.flatten(), second.flatten(), 4, (0.9, 0.99), 0.0)
    factors = Factors((6, 5), 3, 1, DEVICE)
    share_of_first, factor = factors.adam(moments)
    gradient = torch.randn(6, 5, generator=generator)
    left, right = factors._sides
    steps = 0.9 / (1 - 0.9**5), 0.1 / (1 - 0.9**5), 0.99 / (1 - 0.99**5)
    exact = (steps[0] * first + steps[1] * gradient) / (steps[2] * second).sqrt()
    scaled = factors._scaled[0] @ gradient @ factors._scaled[1].T
    torch.testing.assert_close(share_of_first + factor * scaled.flatten(), (left @ exact @ right.T).flatten())


def test_influence_under_projection_follows_the_exact_one(rows):
    model = tiny_model(vocab_size=64, hidden=64)
    others = TokenRows(34, vocab_size=64, lengths=range(6, 20), seed=3)
    pool = [*(rows[i] for i in range(6)), *(others[i] for i in range(34))]
    target = [TargetSet("t", rows)]
    options = RowPass(pool, pad_collate, token_budget=256, progress=False)

    def scores(dim):
        with per_sample_gradients(model, factor_dim=dim) as gradients:
            return influences(gradients, model, target_means(gradients, model, target, options), options)[:, 0]

    exact, found = scores(None), scores(32)
    assert set(np.argsort(-exact)[:6]) == set(np.argsort(-found)[:6]) == set(range(6))
    assert np.corrcoef(exact, found)[0, 1] > 0.9


def test_moments_reach_projected_and_whole_parameters(rows):
    model = tiny_model(vocab_size=64)
    with per_sample_gradients(model, factor_dim=8) as gradients:
        moments = {
            route.index: Moments(torch.ones(route.numel), torch.ones(route.numel), 3, (0.9, 0.999), 1e-8)
            for route in gradients.routes
        }
        plain = Whole(6, DEVICE)
        gradients.backward(batch_of(rows), plain)
        adam = Whole(6, DEVICE, FactoredAdam(moments, gradients.factors))
        gradients.backward(batch_of(rows), adam)
    for index, vectors in plain.vectors.items():
        assert adam.vectors[index].shape == vectors.shape
        assert not torch.allclose(adam.vectors[index], vectors)
