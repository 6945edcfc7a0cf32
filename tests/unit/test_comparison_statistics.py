"""The statistics of a comparison: the level is held, the exact cases are, and words and figures are of one test."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from dataflex.experiments.statistics import (
    POWER,
    bootstrap_interval,
    holm,
    paired_p,
    power,
    seeds_needed,
    smallest_found,
    t_interval,
)
from scipy import stats

DRAWS = 20_000
LEVEL = 0.05
SLACK = 3 * math.sqrt(LEVEL * (1 - LEVEL) / DRAWS)  # of a rate that is measured with so many draws
NULLS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails": lambda rng, shape: rng.standard_t(3, size=shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
    "skewed runs": lambda rng, shape: np.exp(rng.normal(size=shape)) - np.exp(rng.normal(size=shape)),
    "rounded": lambda rng, shape: np.round(2 * rng.normal(size=shape)) / 2,
}


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("n", range(2, 11))
def test_an_arm_that_is_no_other_is_not_called_better_more_often_than_the_level_says(n, null):
    draws = NULLS[null](np.random.default_rng(n), (DRAWS, n))
    found = paired_p(draws) <= LEVEL
    assert found.mean() <= LEVEL + SLACK
    assert (found & (draws.mean(-1) < 0)).mean() <= LEVEL / 2 + SLACK


def test_an_interval_of_percentiles_of_resamples_would_not_hold_it():
    draws = np.random.default_rng(0).normal(size=(2000, 3))
    outside = [low > 0 or high < 0 for low, high in map(ends, (bootstrap_interval(d, LEVEL) for d in draws))]
    assert np.mean(outside) > 0.2


def ends(interval):
    return interval.low, interval.high


def test_the_level_holds_for_all_that_is_tested_together():
    """Four arms that share their reference, on two metrics: all of them null."""
    rng = np.random.default_rng(1)
    runs = rng.normal(size=(4000, 2, 5, 3))  # draws, metrics, arms, seeds
    p = paired_p(runs[:, :, 1:] - runs[:, :, :1]).reshape(4000, 8)
    wrong = [any(adjusted <= LEVEL for adjusted, _ in holm(list(row), LEVEL)) for row in p]
    assert np.mean(wrong) <= LEVEL + 3 * math.sqrt(LEVEL / 4000)
    assert (p <= LEVEL).any(-1).mean() > 2 * LEVEL  # which each alone would not


@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_p_value_is_that_of_a_t_test(n):
    differences = np.random.default_rng(n).normal(0.5, 1, (20, n))
    np.testing.assert_allclose(paired_p(differences), stats.ttest_1samp(differences, 0, axis=-1).pvalue, rtol=1e-9)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([0.3], 1.0),
        ([0.0, 0.0, 0.0], 1.0),
        ([-0.5, -0.5], 0.5),
        ([-0.1 - 0.2, -0.3, -0.3], 0.25),  # the first is -0.30000000000000004
        ([0.2] * 6, 2**-5),
        ([math.nan, 0.1, 0.1], math.nan),
    ],
)
def test_differences_without_a_spread_are_not_certain(differences, p):
    np.testing.assert_equal(float(paired_p(np.array(differences))), p)


def test_holm_is_the_step_down_by_hand():
    found = holm([0.01, 0.04, 0.03, 0.005], LEVEL)
    np.testing.assert_allclose([adjusted for adjusted, _ in found], [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose([level for _, level in found], [LEVEL / 3, LEVEL / 2, LEVEL / 2, LEVEL / 4])
    assert holm([], LEVEL) == []
    assert holm([math.nan, 0.02], LEVEL)[0][0] == 1.0


def test_an_interval_leaves_0_out_exactly_where_the_verdict_says_so():
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(300):
        several = rng.normal(rng.choice([0.0, 1.0, 3.0], 4)[:, None], 1, (4, 5))
        p = list(paired_p(several))
        for differences, (adjusted, level), own in zip(several, holm(p, LEVEL), p, strict=True):
            low, high = ends(t_interval(differences, level))
            outside = low > 0 or high < 0
            assert outside == (adjusted <= LEVEL) == (own <= level)
            seen.add(outside)
    assert seen == {True, False}


def test_an_interval_holds_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(4).normal(2.0, 1.0, (4000, 3))
    inside = [low <= 2.0 <= high for low, high in map(ends, (t_interval(d, 0.1) for d in draws))]
    assert abs(np.mean(inside) - 0.9) < 3 * math.sqrt(0.09 / 4000)


def test_few_seeds_are_resampled_in_all_ways_and_many_alike_each_time():
    differences = np.array([0.1, -0.4, 0.3])
    means = [np.mean(each) for each in itertools.product(differences, repeat=3)]
    np.testing.assert_allclose(ends(bootstrap_interval(differences, 0.1)), np.quantile(means, [0.05, 0.95]))
    many = np.random.default_rng(5).normal(size=20)
    assert bootstrap_interval(many, LEVEL) == bootstrap_interval(many.copy(), LEVEL)
    low, high = ends(bootstrap_interval(many, LEVEL))
    assert low < many.mean() < high
    assert math.isnan(bootstrap_interval(np.array([1.0]), LEVEL).low)
    assert math.isnan(bootstrap_interval(np.array([1.0, math.nan]), LEVEL).high)


def test_as_many_seeds_as_are_named_find_the_difference_and_one_less_does_not():
    assert seeds_needed(1.0, 1.0, LEVEL) == 10  # the textbook's: an effect of 1, 5 %, 80 %
    rng, n = np.random.default_rng(6), seeds_needed(0.02, 0.015, LEVEL)
    for count, enough in ((n, True), (n - 1, False)):
        found = (paired_p(rng.normal(0.02, 0.015, (DRAWS, count))) <= LEVEL).mean()
        assert (found >= POWER - 0.01) == enough
    assert power(n, 0.02 / 0.015, LEVEL) >= POWER > power(n - 1, 0.02 / 0.015, LEVEL)


@pytest.mark.parametrize(
    ("difference", "std", "n"),
    [(0.0, 1.0, None), (1.0, 0.0, None), (1.0, math.nan, None), (9e9, 1.0, 2), (1e-9, 1.0, None)],
)
def test_a_number_of_seeds_is_named_only_where_there_is_one(difference, std, n):
    assert seeds_needed(difference, std, LEVEL) == n


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_least_difference_that_is_found_has_that_power(n):
    assert power(n, smallest_found(n, 0.3, LEVEL) / 0.3, LEVEL) == pytest.approx(POWER, abs=1e-6)
    assert math.isnan(smallest_found(1, 0.3, LEVEL))
    assert math.isnan(smallest_found(n, 0.0, LEVEL))
