"""ADO: the fit against laws that are known, the policy against the paper's recurrences, resume, ranks, refusals."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ConfigError
from dataflex.planning.mixture import MixtureManager
from dataflex.run.state import load_state, save_state
from dataflex_mixers import ado
from dataflex_mixers.ado import AdoMixer
from dataflex_mixers.parts.power_law import _objective, fit_power_law, learning_speed, smoothed

ALONE = SimpleNamespace(is_main_process=True, num_processes=1)
NAMES = ("web", "code", "math")
PRIOR = np.array([0.6, 0.3, 0.1])
LAWS = np.array([[math.log(3.0), math.log(2.0), 0.3], [math.log(5.0), math.log(1.8), 0.5], [0.5, math.log(2.2), 0.15]])
QUICK = {"start_step": 60, "skip_steps": 10, "subsample": 2, "smoothing_window": 11, "fit_every": 40}


def mixer(accelerator=ALONE, **params):
    made = AdoMixer(MixtureManager(NAMES, (10, 20, 30), PRIOR, seed=1), accelerator, **(QUICK | params))
    made.bind("ado", 1)
    return made


def at(step, total=10**6):
    return UpdateContext(step, total, step, total, 1e-4, None)


def losses_at(n):
    return np.exp(LAWS[:, 1]) + np.exp(LAWS[:, 0] - LAWS[:, 2] * math.log(n))


def run(made, first, last, shares=None):
    """Steps ``first`` to ``last`` of 2048 tokens, an update before each; returns the shares in force at each."""
    history = [] if shares is None else shares
    for step in range(first, last):
        answer = made.mix(None, step, context=at(step))
        made.mixture_manager.set_proportions(answer)
        history.append(made.mixture_manager.proportions.copy())
        tokens = np.array([1024, 1024 - 100 * (step % 2), 100 * (step % 2)])
        n = 2.0 * (step + 1)
        made.observe(step + 1, np.where(tokens > 0, losses_at(n), np.nan), tokens)
    return history


@pytest.mark.parametrize("law", LAWS)
def test_a_law_is_found_again(law):
    n = 8.0 * np.arange(500, 5000, 10)
    found = fit_power_law(n, np.exp(law[1]) + np.exp(law[0] - law[2] * np.log(n)))
    np.testing.assert_allclose(found, law, rtol=0.02, atol=0.005)


def test_the_learning_speed_is_the_slope_of_the_law():
    n, h = 1000.0, 1e-2
    slope = -(ado_loss(n + h) - ado_loss(n - h)) / (2 * h)
    np.testing.assert_allclose(learning_speed(LAWS, n), slope, rtol=1e-5)


def ado_loss(n):
    return np.exp(LAWS[:, 1]) + np.exp(LAWS[:, 0]) * n ** -LAWS[:, 2]


def test_the_gradient_of_the_fit_is_that_of_its_value():
    rng = np.random.default_rng(0)
    log_n, log_loss = np.log(np.arange(10.0, 200)), rng.normal(1, 0.1, 190)
    for params in rng.normal([1, 0.5, 0.3], 0.2, (20, 3)):
        value, gradient = _objective(params, log_n, log_loss)
        for i in range(3):
            step = np.eye(3)[i] * 1e-6
            numeric = (
                _objective(params + step, log_n, log_loss)[0] - _objective(params - step, log_n, log_loss)[0]
            ) / 2e-6
            assert gradient[i] == pytest.approx(numeric, rel=1e-3, abs=1e-3 * abs(gradient).max())
        assert value > 0


def test_the_limits_of_the_paper_hold_and_the_least_epsilon_gives_way_to_small_losses():
    n = np.arange(10.0, 400)
    steep = fit_power_law(n, 2.0 + 400 * n**-1.5)
    assert steep[2] <= 0.8 + 1e-9
    assert steep[0] <= 6.5 + 1e-9
    flat = fit_power_law(n, np.full(len(n), 1.9))
    assert flat[1] >= 0.5 - 1e-9
    small = fit_power_law(n, 0.3 + 0.5 * n**-0.3)
    np.testing.assert_allclose(np.exp(small[1]), 0.3, rtol=0.05)


def test_smoothing_takes_away_noise_and_leaves_short_histories_alone():
    rng = np.random.default_rng(0)
    line = np.linspace(3, 2, 300)[:, None]
    noisy = line + rng.normal(0, 0.1, line.shape)
    assert abs(smoothed(noisy, 101) - line).mean() < abs(noisy - line).mean() / 3
    np.testing.assert_array_equal(smoothed(noisy[:4], 101), noisy[:4])
    assert smoothed(noisy[:6], 101).shape == (6, 1)


def test_until_the_first_fit_the_prior_holds():
    made = mixer()
    for shares in run(made, 0, 60):
        np.testing.assert_allclose(shares, PRIOR, rtol=1e-12)
    assert made.details() == {}


def test_the_policy_is_the_recurrence_of_the_paper_by_hand():
    made = mixer(min_share=0.15)
    found = run(made, 0, 130)
    assert made.fitted_at == 100
    n, h, average, policy, expected, laws = 0.0, PRIOR.copy(), PRIOR.copy(), PRIOR.copy(), [], None
    again = mixer(min_share=0.15)

    def advance(t):
        nonlocal average, policy
        speed = np.maximum(laws[:, 2], 0.05) * np.exp(laws[:, 0]) * n ** -laws[:, 2] / n
        rho = PRIOR * h**0.5 * speed
        rho /= rho.sum()
        rho = np.maximum(rho, 0.15) / np.maximum(rho, 0.15).sum()
        policy = 0.1 * rho + 0.9 * average
        average = rho / (t + 1) + (1 - 1 / (t + 1)) * average

    for step in range(130):
        again.mix(None, step, context=at(step))
        again.mixture_manager.set_proportions(found[step])
        if step in (60, 100):
            first = laws is None
            laws = again.params_K3.copy()
            if first:
                advance(step)
        expected.append(policy / policy.sum())
        tokens = np.array([1024, 1024 - 100 * (step % 2), 100 * (step % 2)])
        again.observe(step + 1, np.where(tokens > 0, losses_at(2.0 * (step + 1)), np.nan), tokens)
        n += 2.0
        h = 0.1 * expected[-1] + 0.9 * h
        if laws is not None:
            advance(step + 1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert abs(found[-1] - PRIOR).max() > 0.01, "the policy has left the prior"
    speeds = learning_speed(made.params_K3, n)
    np.testing.assert_allclose(speeds, learning_speed(LAWS, n), rtol=0.1)


def preferred(made, params, shares=PRIOR):
    """rho of the moment, with these laws."""
    made.params_K3, made.policy_rate, made.prior_K = np.array(params), 1.0, np.array(shares)
    made.log_history_K = np.zeros(len(shares))
    made.counts_T.append(100.0)
    made._advance(1)
    return np.exp(made.log_policy_K)


def test_a_flat_law_is_preferred_as_with_an_alpha_of_a_twentieth():
    laws = [[1.0, 0.5, 0.001], [1.0, 0.5, 0.3], [1.0, 0.5, 0.05]]
    rho = preferred(mixer(min_share=0.0), laws, np.ones(3) / 3)
    speeds = [0.05 * 100**-0.001, 0.3 * 100**-0.3, 0.05 * 100**-0.05]
    np.testing.assert_allclose(rho, np.array(speeds) / sum(speeds), rtol=1e-9)


def test_the_floor_clips_and_renormalises_and_leaves_a_mixture_of_many_sources_alone():
    """Mixed with even shares, a floor of 0.01 at 22 sources made 22 % of the mixture even."""
    K = 22
    shares = np.full(K, 0.04)
    shares[0] = 1 - 0.04 * (K - 1)
    made = AdoMixer(MixtureManager([str(k) for k in range(K)], [10] * K, shares, seed=1), ALONE)
    np.testing.assert_allclose(preferred(made, [[1.0, 0.5, 0.3]] * K, shares), shares, rtol=1e-9)
    shares[1], shares[0] = 0.001, shares[0] + 0.039
    clipped = np.maximum(shares, 0.01)
    np.testing.assert_allclose(preferred(made, [[1.0, 0.5, 0.3]] * K, shares), clipped / clipped.sum(), rtol=1e-9)


def test_a_run_that_ends_before_the_first_fit_is_told_so(caplog):
    plain = AdoMixer(MixtureManager(NAMES, (10, 20, 30), PRIOR, seed=1), ALONE)
    with caplog.at_level(logging.WARNING, logger="dataflex"):
        plain.mix(None, 0, context=at(0, 2001))
        assert not caplog.records
        plain.mix(None, 0, context=at(0, 600))
    assert "the first fit is at step 2000 and the run has 600 steps" in caplog.text
    assert "-> lower start_step (2000), skip_steps (1000) or subsample (10)" in caplog.text


def test_a_source_that_is_missing_keeps_its_last_loss_and_a_new_one_has_the_mean():
    made = mixer()
    made.observe(1, np.array([4.0, 2.0, math.nan]), np.array([30, 10, 0]))
    made.observe(2, np.array([math.nan, 1.0, 9.0]), np.array([0, 5, 5]))
    np.testing.assert_allclose(np.array(made.losses_TK), [[4, 2, 3.5], [4, 1, 9]])
    np.testing.assert_allclose(made.counts_T, [40 / 1024, 50 / 1024])


def test_a_checkpoint_continues_to_the_last_bit(tmp_path):
    expected = run(mixer(), 0, 150)
    for stop in (30, 75, 110):
        first, second = mixer(), mixer()
        run(first, 0, stop)
        save_state(tmp_path, {"identity": {}, "component": first.state_dict()})
        second.load_state_dict(load_state(tmp_path)["component"])
        second.mixture_manager.set_proportions(first.mixture_manager.proportions)
        np.testing.assert_array_equal(run(second, stop, 150), expected[stop:])


def test_the_other_ranks_take_the_fit_of_rank_0(monkeypatch):
    sent = []

    def broadcast(answer):
        sent.append(answer[0])
        answer[0] = LAWS.copy()

    monkeypatch.setattr(ado, "broadcast_object_list", broadcast)
    other = mixer(SimpleNamespace(is_main_process=False, num_processes=2))
    run(other, 0, 61)
    assert sent == [None], "a rank that does not fit computes nothing"
    np.testing.assert_array_equal(other.params_K3, LAWS)


def test_too_few_points_leave_the_prior_in_force():
    made = mixer(start_step=1, skip_steps=0, subsample=10)
    run(made, 0, 70)
    assert made.params_K3 is None
    run(made, 70, 72)
    assert made.fitted_at == 71


def test_everything_wrong_is_reported_at_once():
    with pytest.raises(ConfigError) as error:
        mixer(fit_every=0, credit=2, min_share=0.5, smoothing_window=3)
    said = str(error.value)
    assert "4 problems" in said
    assert "fit_every of the ado mixer: found 0, allowed: a whole number of at least 1" in said
    assert "min_share of the ado mixer: found 0.5, allowed: a number from 0 below 0.333333" in said
