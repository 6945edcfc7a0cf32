"""An arm beside its reference on one metric: the paired differences, the verdict, and the verdict in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dataflex.experiments.statistics import MOST_SEEDS, POWER, Floats, Interval, paired_p, smallest_found

BETTER, WORSE, UNDECIDED = "better", "worse", "undecided"
_MANY = 100  # seeds beyond which a number of them is no advice


@dataclass(frozen=True)
class Pairing:
    """An arm and its reference on a metric.

    Attributes:
        arm: The arm.
        against: The reference.
        metric: The metric.
        lower: Whether lower is better.
        values: (S,) of the arm, by seed; NaN where there is none.
        others: (S,) of the reference.
        broken: Seeds in which the run of the arm ended, and the metric is no number.
    """

    arm: str
    against: str
    metric: str
    lower: bool
    values: Floats
    others: Floats
    broken: tuple[int, ...] = ()

    @property
    def differences(self) -> Floats:
        """(n,) arm - reference, of the seeds that both have."""
        found = self.values - self.others
        return found[np.isfinite(found)]

    @property
    def p(self) -> float:
        """The p-value; 1 where there is nothing to test."""
        return float(paired_p(self.differences)) if len(self.differences) > 1 else 1.0

    @property
    def wins(self) -> int:
        """Seeds in which the arm is better."""
        better = self.differences < 0 if self.lower else self.differences > 0
        return int(better.sum())

    def verdict(self, adjusted: float, level: float) -> str:
        """Returns the verdict.

        Args:
            adjusted: The p-value, adjusted for all that is tested.
            level: Of all of them.
        """
        if len(self.differences) < 2 or adjusted > level:
            return UNDECIDED
        better = (self.differences.mean() < 0) == self.lower
        return UNDECIDED if better and self.broken else BETTER if better else WORSE


def sentence(p: Pairing, verdict: str, level: float, interval: Interval, std: float, needed: int | None) -> str:
    """Returns the verdict in words."""
    n, differences = len(p.differences), p.differences
    if p.broken:
        seeds = ", ".join(map(str, p.broken))
        return f"{p.metric}: {p.arm} has no number with seed {seeds}, so it is not called better than {p.against}."
    if n < 2:
        have = "no seed is" if n == 0 else "1 seed is"
        return f"{p.metric}: {have} there for both {p.arm} and {p.against}; give 2 or more to tell them apart."
    both = np.isfinite(p.values) & np.isfinite(p.others)
    difference = float(differences.mean())
    means = f"{p.values[both].mean():.4g} against {p.others[both].mean():.4g}"
    within = f"{percent(1 - level)} interval {interval.low:+.2g} to {interval.high:+.2g}"
    if verdict != UNDECIDED:
        won = f"better in {p.wins} of {n} seeds"
        same = math.isnan(interval.low)
        figures = "by as much in each" if same else within
        return f"{p.metric}: {p.arm} is {verdict} than {p.against}: {means}, {difference:+.3g} ({figures}; {won})."
    apart = f"{p.metric}: {p.arm} cannot be told apart from {p.against} with {n} seeds"
    if math.isnan(interval.low):
        if difference == 0:
            return f"{apart}: both have the same figures in each."
        return (
            f"{apart}: it differs by {difference:+.3g} in each, and without a spread nobody can tell luck from effect."
        )
    if needed is not None and needed <= n:
        return f"{apart}: the difference is {difference:+.3g} ({within}), just short of what it takes."
    if needed is not None and needed <= _MANY:
        more = f"about {needed} would be needed for a difference of {abs(difference):.2g}"
        return f"{apart}: the difference is {difference:+.3g} ({within}); {more}."
    found = smallest_found(n, std, level)
    most = _MANY if needed else MOST_SEEDS
    more = f"more than {most} would be needed for a difference as small as {abs(difference):.2g}"
    chance = f"{n} find one of {found:.2g} with a chance of {percent(POWER)}"
    return f"{apart}: the difference is {difference:+.3g} ({within}); {more}, and {chance}."


def percent(share: float) -> str:
    """Returns a share as a percentage."""
    return f"{100 * share:.4g} %"
