"""PiKE against arXiv 2502.06244 written out, in float64: moments of brute-force gradients, and two quadratic tasks."""

from __future__ import annotations

import numpy as np
import pytest
from dataflex.core.errors import ConfigError
from dataflex.interfaces.source_gradients import SourceGradients
from dataflex.planning.mixture import MixtureManager
from dataflex.run.state import load_state, save_state
from dataflex.testing import tiny_model
from dataflex_mixers.pike import PikeMixer, balancing, exponents, moments, reweighted
from gradient_runs import EXACT, row_gradients, trained
from hypothesis import given
from hypothesis import strategies as st

LOSSES, TOKENS = np.array([1.0, 2.0, 4.0]), np.array([10, 10, 10])


def mixer(K=3, shares=None, **params):
    names = [f"source {k}" for k in range(K)]
    found = PikeMixer(MixtureManager(names, [10] * K, shares or [1 / K] * K, seed=1), **params)
    found.bind("pike", 1)
    return found


def told(rows):
    """What a step shows of rows: a list of (n, D) gradients, one for each source."""
    sums = np.array([np.sum(x, axis=0) for x in rows])
    squares = np.array([np.square(x).sum() for x in rows])
    counts = np.array([len(x) for x in rows])
    return SourceGradients(1e-3, sums, squares, counts.astype(np.float64), counts)


def rows_of(counts, D=6, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(k, 1 + k, (n, D)) for k, n in enumerate(counts)]


@given(st.lists(st.integers(2, 9), min_size=2, max_size=5), st.integers(0, 99))
def test_moments_are_those_of_the_rows_one_by_one(counts, seed):
    rows = rows_of(counts, seed=seed)
    norms_K, variances_K = moments(told(rows).sums, told(rows).squares, told(rows).rows)
    for x, norm, variance in zip(rows, norms_K, variances_K, strict=True):
        expected = np.square(x - x.mean(axis=0)).sum() / (len(x) - 1)
        assert variance == pytest.approx(expected, rel=1e-9)
        pairs = [x[i] @ x[j] for i in range(len(x)) for j in range(len(x)) if i != j]  # unbiased: no row with itself
        assert norm == pytest.approx(max(0.0, np.mean(pairs)), rel=1e-6, abs=1e-9)


def test_the_noise_is_no_part_of_the_gradient():
    """Rows with mean zero: the squared mean gradient of a few of them is noise, and its estimate is 0 on average."""
    generator = np.random.default_rng(3)
    found, plain = [], []
    for _ in range(2000):
        x = generator.normal(0, 1, (4, 5))
        one = told([x, x])
        mean_sq = np.square(one.sums[0]).sum() / 16
        found.append(mean_sq - moments(one.sums, one.squares, one.rows)[1][0] / 4)
        plain.append(mean_sq)
    assert abs(np.mean(found)) < 0.05
    assert np.mean(plain) == pytest.approx(5 / 4, rel=0.1)


def test_fewer_than_two_rows_say_nothing_and_the_others_decide():
    rows = rows_of([4, 1, 5])
    norms_K, variances_K = moments(told(rows).sums, told(rows).squares, told(rows).rows)
    assert np.isnan(norms_K).tolist() == np.isnan(variances_K).tolist() == [False, True, False]
    before = np.log([0.2, 0.3, 0.5])
    found = np.exp(reweighted(before, np.array([0.4, np.nan, 0.2])))
    by_hand = np.array([0.2 * np.exp(0.4), 0.3 * np.exp(0.3), 0.5 * np.exp(0.2)])
    np.testing.assert_allclose(found, by_hand / by_hand.sum(), rtol=1e-12)


def test_nothing_known_changes_nothing():
    before = np.log([0.2, 0.8])
    np.testing.assert_array_equal(reweighted(before, np.array([np.nan, np.nan])), before)
    np.testing.assert_allclose(mixer(2, [0.2, 0.8]).mix(None, 1), [0.2, 0.8])


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("tau", [None, 3.0])
def test_an_update_is_the_formula_by_hand(relative, tau):
    found, steps = mixer(shares=[0.5, 0.3, 0.2], relative=relative, tau=tau, zeta_1=0.02, zeta_2=0.3), 2
    every = [rows_of([4, 3, 5], seed=seed) for seed in range(steps)]
    for step, rows in enumerate(every):
        found.observe(step + 1, LOSSES, TOKENS)
        found.observe_gradients(step + 1, told(rows))
    shares = found.mix(None, steps)
    exponent = []
    means, variances = [], []
    for k in range(3):
        x = np.concatenate([rows[k] for rows in every])
        variances.append(np.square(x - x.mean(axis=0)).sum() / (len(x) - 1))
        means.append(np.square(x.mean(axis=0)).sum() - variances[-1] / len(x))
    scale = np.mean(np.maximum(means, 0) + np.array(variances) / 12) if relative else 1.0
    for k in range(3):
        y = 1.0 if tau is None else 3 * np.exp(tau * LOSSES[k]) / np.exp(tau * LOSSES).sum()
        exponent.append(y * (0.02 * max(means[k], 0) - 0.3 / (2 * 12) * variances[k]) / scale)
    by_hand = np.array([0.5, 0.3, 0.2]) * np.exp(exponent)
    np.testing.assert_allclose(shares, by_hand / by_hand.sum(), rtol=1e-9)


def test_two_quadratic_tasks_go_where_the_expected_loss_falls():
    """The paper's worked example, derived anew. L_k = theta_k^2 / 2, the gradient of a row of task k is theta_k along
    axis k plus noise of variance s_k; a step on b rows, w_k b of them of task k, leaves

        E = sum_k (t_k - eta w_k t_k)^2 / 2 + eta^2 (w_1 s_1 + w_2 s_2) / (2 b)

    whose minimum over w_1 + w_2 = 1 is w_1 = ((s_2 - s_1) / (2 b) + (t_1^2 - t_2^2) / eta + t_2^2) / (t_1^2 + t_2^2).
    The exponents with zeta_1 = eta and zeta_2 = eta^2 are -dE/dw_k without the term of second order in w_k; with it,
    updates made again and again end at that minimum.
    """
    t, s, eta, b = np.array([1.0, 1.02]), np.array([0.9, 0.2]), 0.1, 8.0

    def loss(w_1):
        w = np.array([w_1, 1 - w_1])
        return float(np.square(t - eta * w * t).sum() / 2 + eta**2 * (w @ s) / (2 * b))

    best = ((s[1] - s[0]) / (2 * b) + (t[0] ** 2 - t[1] ** 2) / eta + t[1] ** 2) / np.square(t).sum()
    grid = np.linspace(0, 1, 100001)
    assert grid[np.argmin([loss(w) for w in grid])] == pytest.approx(best, abs=1e-5)
    log_w = np.log([0.5, 0.5])
    for _ in range(4000):
        found = exponents(t**2, s, b, eta, eta**2) - (eta * np.exp(log_w) * t) ** 2 / np.exp(log_w)
        log_w = reweighted(log_w, found)
    assert np.exp(log_w[0]) == pytest.approx(best, abs=1e-4)
    slope = (loss(0.5 + 1e-6) - loss(0.5 - 1e-6)) / 2e-6
    first_order = np.diff(exponents(t**2, s, b, eta, eta**2))[0]
    assert slope == pytest.approx(first_order + eta**2 * (0.5 * t[0] ** 2 - 0.5 * t[1] ** 2), rel=1e-4)


def test_noise_lowers_a_share_and_a_larger_batch_lets_it_count_less():
    norms, noisy = np.ones(2), np.array([1.0, 9.0])
    small, large = (reweighted(np.log([0.5, 0.5]), exponents(norms, noisy, b, 0.1, 1.0)) for b in (4, 64))
    assert small[1] < large[1] < np.log(0.5)


def test_balancing_favours_the_source_of_the_highest_loss():
    y = balancing(np.array([1.0, 3.0, np.nan]), 2.0)
    assert y[1] > 1 > y[0]
    assert y[2] == 1
    assert y[:2].mean() == pytest.approx(1)
    np.testing.assert_array_equal(balancing(np.full(2, np.nan), 2.0), [1, 1])


def test_moments_in_a_run_are_those_of_brute_force_gradients(tmp_path):
    run = trained(tmp_path, {**EXACT, "zeta_1": 0.0, "zeta_2": 0.0}, name="pike", steps=4)
    window = [np.concatenate(parts) for parts in zip(*(_by_source(step) for step in run.steps[2:]), strict=True)]
    kept = run.trainer.component.gradients
    norms_K, variances_K = moments(kept.sums_KD, kept.squares_K, kept.rows_K)
    for x, norm, variance in zip(window, norms_K, variances_K, strict=True):
        expected = np.square(x - x.mean(axis=0)).sum() / (len(x) - 1)
        assert variance == pytest.approx(expected, rel=1e-4)
        assert norm == pytest.approx(max(0, np.square(x.mean(axis=0)).sum() - expected / len(x)), rel=1e-3, abs=1e-4)


def _by_source(step):
    grads_NP, of_N, labels_N = row_gradients(tiny_model(), step)
    x_NP = (grads_NP / labels_N[:, None]).numpy()
    return [x_NP[of_N.numpy() == k] for k in range(2)]


def test_the_state_goes_through_a_checkpoint(tmp_path):
    found, other = mixer(tau=2.0), mixer(tau=2.0)
    found.observe(1, LOSSES, TOKENS)
    found.observe_gradients(1, told(rows_of([3, 3, 3])))
    save_state(tmp_path, {"identity": {}, "component": found.state_dict()})
    other.load_state_dict(load_state(tmp_path)["component"])
    for each in (found, other):
        each.observe(2, LOSSES[::-1], TOKENS)
        each.observe_gradients(2, told(rows_of([3, 2, 4], seed=1)))
    np.testing.assert_array_equal(found.mix(None, 2), other.mix(None, 2))
    assert found.details() == other.details()
    assert set(found.details()) == {"squared_gradients", "variances", "exponents"}


@given(st.lists(st.integers(2, 9), min_size=2, max_size=5), st.integers(0, 99))
def test_relative_exponents_are_bounded_however_few_rows_there_are(counts, seed):
    """K zeta_1 above, K zeta_2 / 2 below; over the squared gradients alone, of which one may be 0, they are not."""
    K = len(counts)
    found = mixer(K, zeta_1=0.2, zeta_2=0.6)
    found.observe_gradients(1, told(rows_of(counts, seed=seed)))
    found.mix(None, 1)
    values = list(found.details()["exponents"].values())
    assert max(values) <= K * 0.2 + 1e-9
    assert min(values) >= -K * 0.3 - 1e-9


def test_a_share_stays_above_its_floor():
    found = mixer(min_share=0.1, zeta_2=50.0)
    found.observe_gradients(1, told(rows_of([3, 3, 3])))
    assert found.mix(None, 1).min() == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"zeta_1": -1}, "zeta_1 of the pike mixer: found -1"),
        ({"tau": 0}, "tau of the pike mixer: found 0"),
        ({"relative": 1}, "relative of the pike mixer: found 1"),
        ({"min_share": 0.4}, "min_share of the pike mixer: found 0.4"),
        ({"factor_dim": 0}, "factor_dim of the pike mixer: found 0"),
    ],
)
def test_errors_name_the_parameter(params, found):
    with pytest.raises(ConfigError, match=found):
        mixer(**params)
