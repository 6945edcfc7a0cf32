"""ODM against Algorithm 1 of arXiv 2312.02406, written out term by term."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ConfigError
from dataflex.core.kinds import MIXER
from dataflex.discovery.catalog import lookup
from dataflex.discovery.stated_checks import stated_problems
from dataflex.planning.mixture import MixtureManager
from dataflex.run.state import load_state, save_state
from dataflex_mixers.odm import OdmMixer, exploration, policy, rewarded
from dataflex_mixers.parts.simplex import raised
from golden_numbers import golden_cases
from hypothesis import given
from hypothesis import strategies as st

NAMES = ("wiki", "c4", "code")
PRIOR = (0.5, 0.3, 0.2)
NAN = math.nan
LOSSES = [(3.0, 2.0, 4.0), (2.8, NAN, 3.5), (2.5, 1.9, 3.6), (2.6, 1.8, 3.0), (2.4, 1.7, NAN), (2.2, 1.5, 2.0)]


def mixer(warmup=0, **params):
    """A mixer after the update that ends the warm-up."""
    made = OdmMixer(MixtureManager(NAMES, (10, 20, 30), PRIOR, seed=1), **params)
    made.bind("odm", 1)
    asked(made, warmup)
    return made


def asked(made, step):
    """An update that takes effect, as the trainer does it."""
    shares = made.mix(None, step, context=UpdateContext(0, 9, step, 999, 1e-4, None))
    made.mixture_manager.set_proportions(shares)
    return shares


def updated(made, losses, tokens=(5, 7, 11)):
    """One step with these losses, then an update."""
    losses_K = np.array(losses, dtype=np.float64)
    made.observe(made.step + 1, losses_K, np.where(np.isnan(losses_K), 0, tokens))
    return asked(made, made.step + 1)


def by_hand(losses, variant, warmup=0):
    """Algorithm 1 with plain floats."""
    K, a = 3, 0.9
    R, pi, history = [0.0] * K, list(PRIOR), []
    for t, L in enumerate(losses, start=warmup + 1):
        for d in range(K):
            if not math.isnan(L[d]):
                R[d] = a * R[d] + (1 - a) * (L[d] / pi[d] if variant == "paper" else math.exp(L[d]))
        eps = min(1 / K, math.sqrt(math.log(K) / (K * t)))
        before = 1 / K if t == 1 else min(1 / K, math.sqrt(math.log(K) / (K * (t - 1))))
        greedy = [math.exp(before * r) if variant == "paper" else r for r in R]
        pi = [(1 - K * eps) * g / sum(greedy) + eps for g in greedy]
        history.append(pi)
    return history


@pytest.mark.parametrize(
    "case", golden_cases("odm_code"), ids=lambda c: f"warmup {c['warmup_steps']}, {len(c['prior'])}"
)
def test_the_shares_are_those_of_the_authors_program(case):
    """Where t counted updates, or the first window held the warm-up, shares were off by up to 0.38."""
    names, warmup = [f"source {k}" for k in range(len(case["prior"]))], case["warmup_steps"]
    made = OdmMixer(MixtureManager(names, [10] * len(names), case["prior"], seed=1), variant="code")
    tokens_K = np.full(len(names), 100)
    for step in range(warmup):
        made.observe(step + 1, np.linspace(9.0, 2.0, len(names)), tokens_K)
    np.testing.assert_allclose(asked(made, warmup), case["prior"], atol=1e-9)
    for update in case["updates"]:
        made.observe(update["step"], np.array(update["losses"]), tokens_K)
        np.testing.assert_allclose(asked(made, update["step"]), update["shares"], atol=1e-6)


@pytest.mark.parametrize("warmup", [0, 100])
@pytest.mark.parametrize("variant", ["paper", "code"])
def test_several_updates_are_those_of_the_formula_by_hand(variant, warmup):
    made = mixer(warmup, variant=variant)
    expected = by_hand(LOSSES, variant, warmup)
    for losses, shares in zip(LOSSES, expected, strict=True):
        np.testing.assert_allclose(updated(made, losses), shares, rtol=1e-12)
    assert np.ptp(expected[-1]) > 0.01, "the policy has left the even shares"
    even = expected[0] == pytest.approx([1 / 3] * 3)
    assert even == (warmup == 0), "the first K ln K steps of the run explore evenly, and no others"


def test_t_counts_steps_and_not_updates():
    often, seldom = mixer(variant="code"), mixer(variant="code")
    for losses in [LOSSES[0]] * 10:
        shares = updated(often, losses)
    for step in range(10):
        seldom.observe(step + 1, np.array(LOSSES[0]), np.array([5, 7, 11]))
    np.testing.assert_allclose(asked(seldom, 10), shares, rtol=1e-12)
    assert seldom.details()["exploration"] == exploration(10, 3)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_the_losses_of_the_warm_up_are_not_learnt_from(variant):
    made = OdmMixer(MixtureManager(NAMES, (10, 20, 30), PRIOR, seed=1), variant=variant)
    for step in range(7):
        made.observe(step + 1, np.array([9.0, 1.0, 1.0]), np.array([5, 7, 11]))
    np.testing.assert_array_equal(asked(made, 7), PRIOR)
    assert made.details()["losses"] == {}
    other = mixer(7, variant=variant)
    np.testing.assert_array_equal(updated(made, LOSSES[0]), updated(other, LOSSES[0]))


def test_exploration_is_that_of_the_paper():
    assert exploration(0, 4) == 0.25
    assert exploration(1, 4) == 0.25
    assert exploration(100, 4) == pytest.approx(math.sqrt(math.log(4) / 400))


@pytest.mark.parametrize(("updates", "told"), [(1, True), (2, False)])
def test_a_run_whose_only_update_is_the_end_of_the_warm_up_is_told_that_nothing_moves(updates, told, caplog):
    made = OdmMixer(MixtureManager(NAMES, (10, 20, 30), PRIOR, seed=1))
    with caplog.at_level(logging.WARNING, logger="dataflex"):
        made.mix(None, 5, context=UpdateContext(0, updates, 5, 99, 1e-4, None))
    assert ("the run has one update" in caplog.text) == told


@pytest.mark.parametrize(("every", "told"), [(100, True), (99, True), (98, False), (5, False), (1, False)])
def test_a_run_that_measures_no_gradient_after_the_warm_up_is_told(every, told, caplog):
    manager = MixtureManager(NAMES, (10, 20, 30), PRIOR, seed=1)
    made = OdmMixer(manager, reward="gradient_norm", gradient_every=every)
    assert any(made.wants_gradients(step) for step in range(5, 99)) != told
    with caplog.at_level(logging.WARNING, logger="dataflex"):
        made.mix(None, 5, context=UpdateContext(0, 9, 5, 99, 1e-4, None))
    said = f"gradient_every: {every} measures no step between the warm-up, 5 steps, and the end, 99"
    assert (said in caplog.text) == told


def test_the_window_is_the_token_mean_over_its_steps():
    made, direct = mixer(variant="code"), mixer(variant="code")
    made.observe(1, np.array([4.0, 1.0, NAN]), np.array([10, 5, 0]))
    made.observe(2, np.array([1.0, NAN, NAN]), np.array([30, 0, 0]))
    np.testing.assert_allclose(made.mix(None, 1), updated(direct, (1.75, 1.0, NAN)))
    assert made.details()["losses"] == {"wiki": 1.75, "c4": 1.0}


def test_a_source_that_was_not_seen_keeps_its_reward():
    rewards = np.array([1.0, 2.0, 3.0])
    after = rewarded(rewards, np.array([5.0, NAN, NAN]), np.array([0.5, 0.5, 0.0]), 0.9, "paper")
    assert after.tolist() == [0.9 * 1 + 0.1 * 10, 2.0, 3.0]


def test_rewards_by_drop_and_by_excess_by_hand():
    drop, excess = mixer(reward="loss_drop", variant="code"), mixer(reward="excess_over_ema", variant="code")
    ema = None
    for i, losses in enumerate(LOSSES[:1] + LOSSES[2:4]):
        updated(drop, losses)
        updated(excess, losses)
        if i == 0:
            assert drop.rewards_K.tolist() == excess.rewards_K.tolist() == [-math.inf] * 3, "nothing to compare with"
            before, ema = np.array(losses), np.array(losses)
            r_drop = r_excess = np.zeros(3)
            continue
        r_drop = 0.9 * r_drop + 0.1 * np.exp(before - losses)
        r_excess = 0.9 * r_excess + 0.1 * np.exp(np.array(losses) - ema)
        before, ema = np.array(losses), 0.9 * ema + 0.1 * np.array(losses)
        np.testing.assert_allclose(np.exp(drop.rewards_K), r_drop, rtol=1e-12)
        np.testing.assert_allclose(np.exp(excess.rewards_K), r_excess, rtol=1e-12)


def test_shares_are_raised_without_moving_what_is_above():
    """At 22 sources a floor of 0.01 made 22 % of every mixture even."""
    many = np.full(22, 0.03)
    many[0] = 1 - many[1:].sum()
    np.testing.assert_array_equal(raised(many, 0.01), many)
    np.testing.assert_allclose(raised(np.array([0.9, 0.09, 0.01]), 0.05), [0.95 * 0.9 / 0.99, 0.95 * 0.09 / 0.99, 0.05])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40), st.floats(0, 0.999))
def test_raised_shares_are_a_point_of_the_simplex_above_the_floor(parts, part):
    shares = np.array(parts) + 1e-12
    shares /= shares.sum()
    least = part / len(shares)
    floored = raised(shares, least)
    assert floored.sum() == pytest.approx(1, abs=1e-9)
    assert floored.min() >= least * (1 - 1e-9)
    assert (np.diff(floored[np.argsort(shares, kind="stable")]) >= -1e-12).all(), "their order stays"


def test_the_least_share_is_kept():
    made = mixer(min_share=0.2)
    for _ in range(200):
        shares = updated(made, (9.0, 0.1, 0.1))
    assert shares.min() >= 0.2
    assert shares.max() < 0.6 + 1e-9
    assert shares.argmax() == 0


def test_losses_that_no_power_of_e_can_hold_are_rewarded_by_their_difference():
    """exp(710) is infinite: one such loss gave NaN shares, and two of them too."""
    high, low = mixer(variant="code", min_share=0.0), mixer(variant="code", min_share=0.0)
    for t in range(40):
        step = np.array(LOSSES[t % 2 * 2])
        np.testing.assert_allclose(updated(high, step + 800.0), updated(low, step), rtol=1e-9)
    assert all(math.isfinite(reward) for reward in high.details()["log_rewards"].values())
    shares = updated(high, (5000.0, 800.0, 2.0))
    eps = exploration(41, 3)
    np.testing.assert_allclose(shares, [1 - 2 * eps, eps, eps])


def test_without_smoothing_the_reward_is_that_of_the_last_window():
    made = mixer(variant="code", smoothing=0.0)
    for losses in LOSSES[:1] + LOSSES[2:4]:
        updated(made, losses)
    np.testing.assert_allclose(made.rewards_K, LOSSES[3])


@given(st.lists(st.floats(0, 700), min_size=2, max_size=40), st.integers(1, 10**6), st.sampled_from(["paper", "code"]))
def test_the_policy_is_a_point_of_the_simplex_above_its_exploration(rewards, update, variant):
    shares = policy(np.array(rewards), update, variant)
    assert shares.sum() == pytest.approx(1, abs=1e-9)
    assert (shares >= exploration(update, len(rewards)) - 1e-12).all()


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_a_checkpoint_continues_to_the_last_bit(tmp_path, variant):
    whole, first, second = (mixer(variant=variant, reward="excess_over_ema") for _ in range(3))
    expected = [updated(whole, losses) for losses in LOSSES]
    for losses in LOSSES[:3]:
        updated(first, losses)
    first.observe(4, np.array(LOSSES[3]), np.array([2, 3, 4]))  # saved with a window open
    save_state(tmp_path, {"identity": {}, "component": first.state_dict()})
    second.load_state_dict(load_state(tmp_path)["component"])
    second.mixture_manager.set_proportions(first.mixture_manager.proportions)
    shares = second.mix(None, 4)
    whole_again = mixer(variant=variant, reward="excess_over_ema")
    for losses in LOSSES[:3]:
        updated(whole_again, losses)
    np.testing.assert_array_equal(shares, updated(whole_again, LOSSES[3], (2, 3, 4)))
    second.mixture_manager.set_proportions(shares)
    np.testing.assert_array_equal(updated(second, LOSSES[4]), updated(whole_again, LOSSES[4]))
    assert len(expected) == 6


def test_everything_wrong_is_reported_at_once_by_name_and_range():
    with pytest.raises(ConfigError) as error:
        mixer(variant="papier", smoothing=1.0, reward="loos", min_share=0.4)
    said = str(error.value)
    assert "variant of the odm mixer: found 'papier', allowed: paper, code -> did you mean 'paper'?" in said
    assert "smoothing of the odm mixer: found 1.0, allowed: a number from 0 below 1" in said
    assert "reward of the odm mixer: found 'loos'" in said
    assert "min_share of the odm mixer: found 0.4, allowed: a number from 0 below 0.333333" in said


@pytest.mark.parametrize(
    ("params", "refused"),
    [
        ({"eval_rows": 16}, {"eval_rows": "eval_loss"}),
        ({"reward": "gradient_norm", "eval_rows": 16, "proj_dim": 8}, {"eval_rows": "eval_loss"}),
        (
            {"reward": "entropy", "gradient_every": 4, "proj_dim": None, "factor_dim": 8, "layers": "all"},
            dict.fromkeys(("gradient_every", "proj_dim", "factor_dim", "layers"), "gradient_norm"),
        ),
        ({"reward": "loos", "eval_rows": 16}, {}),
        ({"reward": "loss", "eval_rows": 64, "gradient_every": 1, "proj_dim": 4096}, {}),
    ],
)
def test_a_parameter_of_another_reward_is_refused_and_not_ignored(params, refused):
    info = lookup(MIXER, "odm")
    found = stated_problems(info.constructors, {**info.parameters, **params}, ["a", "b"])
    said = {each.where: str(each) for each in found if "no effect" in str(each)}
    assert said.keys() == refused.keys()
    for key, reward in refused.items():
        assert f"{key}: found {params[key]!r}, which has no effect without reward: {reward} -> remove it" in said[key]
    if refused:
        with pytest.raises(ConfigError, match=f"{next(iter(refused))} of the odm mixer"):
            mixer(**params)
