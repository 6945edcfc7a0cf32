"""The mixers of dataflex-mixers: their numbers, what they depend on, and what they refuse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from dataflex.core.context import UpdateContext
from dataflex.core.errors import ConfigError
from dataflex.planning.mixture import MixtureManager
from dataflex_mixers.random import RandomMixer, random_proportions
from dataflex_mixers.static import StaticMixer, normalised
from hypothesis import given
from hypothesis import strategies as st


def sources(proportions: Sequence[float] = (0.5, 0.25, 0.25)) -> MixtureManager:
    return MixtureManager(("wiki", "c4", "code"), (10, 20, 30), proportions, seed=42)


def at(update: int, step: int = 0) -> UpdateContext:
    return UpdateContext(update=update, updates=9, step=step, total_steps=99, learning_rate=1e-4, optimizer=None)


def bound(mixer: RandomMixer, seed: int = 42, name: str = "random") -> RandomMixer:
    mixer.bind(name, seed)
    return mixer


def test_random_draws_anew_at_each_update():
    mixer = bound(RandomMixer(sources()))
    draws = [mixer.mix(None, 10 * u, context=at(u)) for u in range(4)]
    assert len({tuple(d) for d in draws}) == 4


def test_random_repeats_from_the_seed_and_update_whatever_was_drawn_before():
    first = bound(RandomMixer(sources()))
    straight = [first.mix(None, 0, context=at(u)) for u in range(3)]
    resumed = bound(RandomMixer(sources())).mix(None, 7, context=at(2, step=7))
    np.testing.assert_array_equal(resumed, straight[2])


@pytest.mark.parametrize("other", [{"seed": 43}, {"name": "another_preset"}])
def test_random_depends_on_the_seed_and_on_the_name(other):
    draw, elsewhere = (bound(RandomMixer(sources()), **kw).mix(None, 0, context=at(0)) for kw in ({}, other))
    assert not np.array_equal(draw, elsewhere)


def test_random_leaves_the_global_generator_alone():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    bound(RandomMixer(sources())).mix(None, 0, context=at(0))
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_random_is_dirichlet_with_mean_and_variance_of_its_concentration():
    c, sources = 2.0, 4
    generator = np.random.default_rng(0)
    draws = np.stack([random_proportions(generator, sources, c) for _ in range(20_000)])
    np.testing.assert_allclose(draws.mean(axis=0), 1 / sources, atol=5e-3)
    variance = (1 / sources) * (1 - 1 / sources) / (sources * c + 1)
    np.testing.assert_allclose(draws.var(axis=0), variance, rtol=0.05)


@given(st.floats(1e-3, 1e6), st.integers(1, 50), st.integers(0, 2**32))
def test_random_is_a_point_of_the_simplex_over_the_whole_allowed_range(concentration, sources, seed):
    shares = random_proportions(np.random.default_rng(seed), sources, concentration)
    assert shares.shape == (sources,)
    assert np.isfinite(shares).all()
    assert (shares >= 0).all()
    assert shares.sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e-4, 1e7, "1", True, None])
def test_random_refuses_a_concentration_that_is_no_positive_number_by_key_value_and_range(value):
    with pytest.raises(ConfigError) as error:
        RandomMixer(sources(), concentration=value)
    expected = f"concentration of the random mixer: found {value!r}, allowed: a number from 0.001 to 1000000"
    assert expected in str(error.value)


def test_static_keeps_the_given_proportions_normalised_at_every_update():
    mixer = StaticMixer(sources(), proportions=[2, 1, 1])
    for update in range(3):
        np.testing.assert_array_equal(mixer.mix(None, 0, context=at(update)), [0.5, 0.25, 0.25])


def test_static_without_proportions_keeps_those_of_the_manager_and_hands_out_a_copy():
    manager = sources((0.2, 0.3, 0.5))
    shares = StaticMixer(manager).mix(None, 0, context=at(0))
    np.testing.assert_array_equal(shares, [0.2, 0.3, 0.5])
    shares[0] = 9
    assert manager.proportions[0] == 0.2


def test_static_may_leave_a_source_out_and_take_integers_and_arrays():
    np.testing.assert_array_equal(normalised([0, 1, 3]), [0, 0.25, 0.75])
    np.testing.assert_array_equal(normalised(np.array([1, 1])), [0.5, 0.5])
    np.testing.assert_allclose(normalised([1e308, 1e308]), [0.5, 0.5])


@pytest.mark.parametrize(
    ("proportions", "message"),
    [
        ([1, 2], r"found 2 numbers, allowed: 3, one per source \(wiki, c4, code\)"),
        ([], "found 0 numbers"),
        ([1, -0.5, 1], "found -0.5, allowed: finite numbers of 0 or more"),
        ([1, float("nan"), 1], "found nan"),
        ([1, float("inf"), 1], "found inf"),
        ([1, "2", True], "found '2', True"),
        ([0, 0, 0], "found only zeros"),
        (0.5, "found 0.5, allowed: a list"),
        ("111", "found '111', allowed: a list"),
    ],
)
def test_static_refuses_by_key_found_and_allowed(proportions, message):
    with pytest.raises(ConfigError, match=f"proportions of the static mixer: {message}"):
        StaticMixer(sources(), proportions=proportions)


def test_static_reports_every_problem_at_once():
    with pytest.raises(ConfigError, match=r"(?s)2 problems.*found 2 numbers.*found -1"):
        StaticMixer(sources(), proportions=[1, -1])
