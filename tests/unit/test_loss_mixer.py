"""The ``loss`` mixer against softmax(loss / T), written out with plain floats."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ConfigError
from dataflex.planning.mixture import MixtureManager
from dataflex.run.state import load_state, save_state
from dataflex_mixers.loss import LossMixer, running_losses, shares_by_loss
from hypothesis import given
from hypothesis import strategies as st

NAMES, NAN = ("wiki", "c4", "code"), math.nan
WINDOWS = [(3.0, 2.0, NAN), (2.8, NAN, 3.5), (2.5, 1.9, 3.6), (NAN, 1.8, NAN), (2.2, 1.5, 2.0)]
TOKENS = (5, 7, 11)


def mixer(**params):
    made = LossMixer(MixtureManager(NAMES, (10, 20, 30), (0.5, 0.3, 0.2), seed=1), **params)
    made.bind("loss", 1)
    return made


def updated(made, losses, tokens=TOKENS):
    """One step with these losses, then an update."""
    losses_K = np.array(losses, dtype=np.float64)
    made.observe(1, losses_K, np.where(np.isnan(losses_K), 0, tokens))
    return made.mix(None, 1, context=UpdateContext(0, 9, 1, 99, 1e-4, None))


def by_hand(windows, temperature, smoothing, least):
    """The module's formula, source by source; the floor by handing out what is missing until none lacks."""
    running, shares = [None] * 3, []
    for window in windows:
        for k, loss in enumerate(window):
            if not math.isnan(loss):
                running[k] = loss if running[k] is None else smoothing * running[k] + (1 - smoothing) * loss
        known = [loss for loss in running if loss is not None]
        full = [sum(known) / len(known) if loss is None else loss for loss in running]
        powers = [math.exp(loss / temperature) for loss in full]
        p, floored = [power / sum(powers) for power in powers], set()
        while any(share < least and k not in floored for k, share in enumerate(p)):
            floored |= {k for k, share in enumerate(p) if share < least}
            rest = sum(powers[k] for k in range(3) if k not in floored)
            room = 1 - least * len(floored)
            p = [least if k in floored else room * powers[k] / rest for k in range(3)]
        shares.append(p)
    return shares


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.7])
@pytest.mark.parametrize("least", [0.0, 0.1, 0.3])
def test_several_updates_are_those_of_the_formula_by_hand(temperature, smoothing, least):
    made = mixer(temperature=temperature, smoothing=smoothing, min_share=least)
    for window, expected in zip(WINDOWS, by_hand(WINDOWS, temperature, smoothing, least), strict=True):
        np.testing.assert_allclose(updated(made, window), expected, rtol=1e-12)


def test_with_the_defaults_and_every_source_seen_the_shares_are_ms_swifts():
    """Its test: losses 3, 1 and 2 with T = 1."""
    powers = np.exp([3.0, 1.0, 2.0])
    np.testing.assert_allclose(updated(mixer(), (3.0, 1.0, 2.0)), powers / powers.sum(), rtol=1e-12)


def test_a_source_that_was_not_seen_keeps_its_loss_and_one_never_seen_has_the_mean_of_the_others():
    made = mixer()
    first = updated(made, (3.0, 2.0, NAN))
    np.testing.assert_allclose(np.log(first[2] / first[1]), 0.5, rtol=1e-12)
    second = updated(made, (NAN, 2.0, 9.0))
    np.testing.assert_allclose(np.log(second[0] / second[1]), 1.0, rtol=1e-12)


def test_the_window_is_the_token_mean_over_its_steps_and_begins_anew():
    made = mixer()
    made.observe(1, np.array([4.0, 1.0, 1.0]), np.array([10, 5, 5]))
    made.observe(2, np.array([1.0, NAN, 1.0]), np.array([30, 0, 5]))
    made.mix(None, 2)
    assert made.details() == {"losses": {"wiki": 1.75, "c4": 1.0, "code": 1.0}}
    updated(made, (2.0, NAN, NAN))
    assert made.losses_K.tolist() == [2.0, 1.0, 1.0]


def test_an_update_before_any_loss_keeps_the_proportions():
    made = mixer()
    shares = made.mix(None, 0)
    np.testing.assert_array_equal(shares, made.mixture_manager.proportions)
    shares[0] = 9.0
    assert made.mixture_manager.proportions[0] == 0.5, "what is returned is no view of them"
    assert made.details() == {"losses": {}}


def test_a_loss_that_is_not_finite_is_left_out_and_counted(caplog):
    made = mixer()
    with caplog.at_level(logging.WARNING, logger="dataflex"):
        shares = updated(made, (math.inf, 2.0, 1.0))
    np.testing.assert_allclose(np.log(shares[0] / shares[1]), -0.5, rtol=1e-12)
    assert made.left_out == 1


@pytest.mark.parametrize("temperature", [1e-6, 1e-3])
def test_losses_that_no_power_of_e_can_hold_have_shares_by_their_difference(temperature):
    shares = updated(mixer(temperature=temperature, min_share=0.05), (900.0, 2.0, 2.0))
    np.testing.assert_allclose(shares, [0.9, 0.05, 0.05], rtol=1e-12)
    np.testing.assert_allclose(updated(mixer(temperature=temperature), (2.0, 2.0, 2.0)), [1 / 3] * 3)


@given(st.lists(st.floats(0, 50), min_size=2, max_size=30), st.floats(1e-3, 1e3), st.floats(0, 0.99))
def test_the_shares_are_a_point_of_the_simplex_in_the_order_of_the_losses(losses, temperature, part):
    least = part / len(losses)
    shares = shares_by_loss(np.array(losses), temperature, least)
    assert shares.sum() == pytest.approx(1, abs=1e-9)
    assert shares.min() >= least * (1 - 1e-9)
    assert (np.diff(shares[np.argsort(losses, kind="stable")]) >= -1e-12).all()


def test_the_first_loss_is_taken_whole():
    moved = running_losses(np.array([NAN, 1.0, 1.0]), np.array([4.0, 2.0, NAN]), 0.75)
    assert moved.tolist() == [4.0, 1.25, 1.0]


def test_a_checkpoint_continues_to_the_last_bit(tmp_path):
    whole, first, second = (mixer(smoothing=0.6) for _ in range(3))
    expected = [updated(whole, losses) for losses in WINDOWS]
    for losses in WINDOWS[:2]:
        updated(first, losses)
    losses_K = np.array(WINDOWS[2])
    first.observe(3, losses_K, np.array(TOKENS))  # saved with a window open
    save_state(tmp_path, {"identity": {}, "component": first.state_dict()})
    second.load_state_dict(load_state(tmp_path)["component"])
    np.testing.assert_array_equal(second.mix(None, 3), expected[2])
    np.testing.assert_array_equal(updated(second, WINDOWS[3]), expected[3])


def test_everything_wrong_is_reported_at_once_by_name_and_range():
    with pytest.raises(ConfigError) as error:
        mixer(temperature=0, smoothing=1.0, min_share=0.4)
    said = str(error.value)
    assert "temperature of the loss mixer: found 0, allowed: a number above 0" in said
    assert "smoothing of the loss mixer: found 1.0, allowed: a number from 0 below 1" in said
    assert "min_share of the loss mixer: found 0.4, allowed: a number from 0 below 0.333333" in said
