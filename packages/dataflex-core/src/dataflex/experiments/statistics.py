"""Whether an arm differs from its reference: pure functions on differences that are paired by seed.

Two runs of one seed share the model's beginning, the data and the order in which it is first drawn, so their difference
varies less than either. The verdict is Student's t test on these differences. Under the null the two members of a pair
could change places, so the differences are symmetric about 0, where the test holds its level from 2 seeds on for the
normal and errs on the safe side for heavier tails. A percentile bootstrap does not: with 3 seeds all signs agree in one
null case of four, and then its interval leaves 0 out. It is shown beside the verdict and decides nothing.

Several arms and metrics are tested together: Holm's step-down keeps the chance that *any* of them is called better or
worse by luck at the level (Holm 1979). How many seeds would be needed is read off the power of the same test, by the
noncentral t distribution, for the spread that was seen; from 3 seeds that is a rough figure.

Nothing is assumed of the metrics but that they are real numbers. Not covered: seeds that share something with each
other, and metrics so coarse that most differences are one of two or three values.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

POWER = 0.8
"""Chance of finding the difference that a number of seeds is stated for."""
MOST_SEEDS = 1000
"""Seeds beyond which none are counted: nobody trains as often for a difference that small."""
_EQUAL = 1e-6
"""Spread, as a share of the mean, from which down differences count as all the same: what rounding leaves of it."""
_DRAWS, _ALL_DRAWS = 10_000, 50_000  # resamples; where all of them are no more than the second, all of them


@dataclass(frozen=True)
class Interval:
    """Two ends, both NaN where nothing can be said."""

    low: float
    high: float


def paired_p(differences: Floats) -> Floats:
    """Returns the two-sided p-value of the t test that the mean difference is 0.

    One seed has no spread and gives 1. Differences that are all the same have none either, and a division by zero would
    call them certain, though coarse metrics give them by luck: then signs alone count, and all n agree by luck with
    chance 2 ** (1 - n). All 0 gives 1, and a NaN among them NaN.

    Args:
        differences: (..., n), n seeds.

    Returns:
        (...)
    """
    from scipy.stats import t as student  # type: ignore[import-untyped]  # here: core itself does without scipy, which LLaMA-Factory brings

    n = differences.shape[-1]
    mean, std = differences.mean(-1), _std(differences)
    same = std <= _EQUAL * np.abs(mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * student.sf(np.abs(mean) / (std / np.sqrt(n)), max(n - 1, 1))
    p = np.where(same, np.where(mean == 0, 1.0, 2.0 ** (1 - n)), p)
    found: Floats = np.where(np.isnan(mean), np.nan, 1.0 if n < 2 else p)
    return found


def _std(differences: Floats) -> Floats:
    if differences.shape[-1] < 2:
        return np.full(differences.shape[:-1], np.nan)
    found: Floats = differences.std(-1, ddof=1)
    return found


def holm(p: Sequence[float], level: float) -> list[tuple[float, float]]:
    """Returns, for each hypothesis, its adjusted p-value and the level at which it was tested in the end.

    The adjusted value is at most ``level`` exactly where the hypothesis is rejected, and the value itself is at most
    the level it was tested at exactly then: an interval of that level leaves 0 out where the verdict says so.

    Args:
        p: The p-values; NaN counts as 1.
        level: Of all of them together.
    """
    values = [1.0 if np.isnan(each) else float(each) for each in p]
    found = [(1.0, level)] * len(values)
    adjusted, tested = 0.0, 0.0
    for rank, number in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        left = len(values) - rank
        if adjusted <= level:  # none before it has failed
            tested = level / left
        adjusted = max(adjusted, min(1.0, values[number] * left))
        found[number] = (adjusted, tested)
    return found


def t_interval(differences: Floats, level: float) -> Interval:
    """Returns the interval that holds the mean difference with confidence ``1 - level``: the test's own.

    Args:
        differences: (n,)
        level: Such as 0.05.
    """
    from scipy.stats import t as student

    n, mean, std = len(differences), float(differences.mean()), float(_std(differences))
    if n < 2 or std <= _EQUAL * abs(mean):
        return Interval(float("nan"), float("nan"))
    half = float(student.isf(level / 2, n - 1)) * std / n**0.5
    return Interval(mean - half, mean + half)


def bootstrap_interval(differences: Floats, level: float) -> Interval:
    """Returns the percentile bootstrap interval of the mean difference, drawn alike each time.

    Too narrow for few seeds (see above): to be looked at, not to decide by.

    Args:
        differences: (n,)
        level: Such as 0.05.
    """
    n = len(differences)
    if n < 2 or not np.isfinite(differences).all():
        return Interval(float("nan"), float("nan"))
    if n**n <= _ALL_DRAWS:
        draws = np.array(list(itertools.product(range(n), repeat=n)))
    else:
        draws = np.random.default_rng(0).integers(0, n, (_DRAWS, n))
    low, high = np.quantile(differences[draws].mean(-1), [level / 2, 1 - level / 2])
    return Interval(float(low), float(high))


def seeds_needed(difference: float, std: float, level: float) -> int | None:
    """Returns the fewest seeds with which the test finds a difference with chance :data:`POWER`.

    Args:
        difference: What is to be found.
        std: Of the paired differences.
        level: At which the hypothesis is tested.

    Returns:
        None where :data:`MOST_SEEDS` are not enough, or the spread is not known.
    """
    if not std > 0 or difference == 0:
        return None
    effect = abs(difference) / std
    if power(MOST_SEEDS, effect, level) < POWER:
        return None
    return 2 + bisect_left(range(2, MOST_SEEDS), POWER, key=lambda n: power(n, effect, level))


def power(n: int, effect: float, level: float) -> float:
    """Returns the chance that the test finds, on its right side, a difference of ``effect`` standard deviations.

    Args:
        n: Seeds, 2 or more.
        effect: Of the paired differences.
        level: Two-sided.
    """
    from scipy.stats import nct
    from scipy.stats import t as student

    critical = float(student.isf(level / 2, n - 1))
    shift = effect * n**0.5
    found = float(nct.sf(critical, n - 1, shift))
    return float(shift > critical) if math.isnan(found) else found  # where its series ends, there is no doubt left


def smallest_found(n: int, std: float, level: float) -> float:
    """Returns the least difference that ``n`` seeds find with chance :data:`POWER`; NaN where the spread is not known.

    Args:
        n: Seeds.
        std: Of the paired differences.
        level: At which the hypothesis is tested.
    """
    if n < 2 or not std > 0:
        return float("nan")
    low, high = 0.0, 1.0
    while power(n, high, level) < POWER:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if power(n, middle, level) < POWER else (low, middle)
    return high * std
