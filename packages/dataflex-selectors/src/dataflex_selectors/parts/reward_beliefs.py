"""What is believed of the rewards of prompts, and how much they are expected to spread.

Rewards that are 0 or 1, where a prompt has the success rate p:

    p ~ Beta(m/2 + s, m/2 + f)                       s successes and f failures seen, m the weight of the prior
    E[p^(2t) (1-p)^(2(1-t))] = B(a + 2t, b + 2(1-t)) / B(a, b)      t the target; at t = 1/2 this is E[p(1-p)],
                                                                    the variance of a reward, a b / ((a+b)(a+b+1))

Other rewards, of unknown mean and variance v, with S the sum of squares about a prompt's mean and d = n - 1:

    v ~ (m v0 + S) / chi2(m + d)                     scaled inverse chi-square; v0 the variance within prompts, pooled

Letters: N prompts, M of them without a reward, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from dataflex.core.context import RowRewards
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """What was seen of each prompt, in two numbers that may be added up over prompts.

    Attributes:
        binary: Whether the rewards are 0 or 1.
        first: (N,) successes; of other rewards, S.
        second: (N,) failures; of other rewards, d.
        there: (N,) whether anything was seen.
    """

    binary: bool
    first: Numbers
    second: Numbers
    there: NDArray[np.bool_]


def evidence(sums_N: Numbers, squares_N: Numbers, counts_N: Numbers, binary: bool) -> Evidence:
    """Returns the evidence of rewards that were summed up, older ones at less than their weight.

    Args:
        sums_N: (N,) sum of each prompt's rewards.
        squares_N: (N,) sum of their squares.
        counts_N: (N,) sum of their weights.
        binary: Whether every reward is 0 or 1.
    """
    there = counts_N > 0
    if binary:
        return Evidence(True, sums_N, np.maximum(counts_N - sums_N, 0.0), there)
    mean_square_N = np.divide(sums_N**2, counts_N, out=np.zeros(len(sums_N)), where=there)
    about_mean_N = squares_N - mean_square_N
    about_mean_N = np.where(about_mean_N <= 1e-14 * squares_N, 0.0, about_mean_N)  # equal rewards: rounding, not spread
    return Evidence(False, about_mean_N, np.maximum(counts_N - 1, 0.0), there)


class Remembered:
    """Rewards by prompt, where those of an earlier look count less once newer ones are there.

    A policy moves: what a prompt gave it long ago says less of what it will give. When new rewards of a prompt came
    since the last look, its earlier ones count ``decay`` times what they did.

    Args:
        rows: N.
        decay: From 0 to 1; 1 keeps all, 0 knows the newest only.
    """

    def __init__(self, rows: int, decay: float) -> None:
        self._decay = decay
        self.now: NDArray[np.float64] = np.zeros((3, rows))  # sums, squares, counts
        self._before: NDArray[np.float64] = np.zeros((3, rows))  # the run's own, at the last look

    def look(self, found: RowRewards, max_age: int | None) -> Evidence:
        """Takes what came since the last look, forgets what is too old, and returns what is left.

        Args:
            found: The rewards of all prompts since the run began.
            max_age: Optimizer steps after which a prompt counts as never sampled; None for none.
        """
        total = np.stack([found.sums, found.squares, found.counts.astype(np.float64)])
        if (total[2] < self._before[2]).any():  # a training began anew, and the run has forgotten the one before
            self.now[:], self._before[:] = 0.0, 0.0
        new_N = total[2] > self._before[2]
        self.now[:, new_N] = self._decay * self.now[:, new_N] + (total - self._before)[:, new_N]
        self._before = total
        if max_age is not None:
            self.now[:, found.ages > max_age] = 0.0
        return evidence(self.now[0], self.now[1], self.now[2], found.binary)

    def state_dict(self) -> dict[str, NDArray[np.float64]]:
        """Returns both arrays."""
        return {"now": self.now, "before": self._before}

    def load_state_dict(self, state: dict[str, NDArray[np.float64]]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.now, self._before = (np.array(state[key], dtype=np.float64) for key in ("now", "before"))


def lent(seen: Evidence, places_M: NDArray[np.int64], near_MK: NDArray[np.int64], cosine_MK: Numbers) -> Evidence:
    """Returns the evidence, with that of the nearest prompts for those that have none of their own.

    A neighbour lends in proportion to its cosine, and all together at most what one prompt has on average.

    Args:
        seen: The evidence; of its neighbours every one has some.
        places_M: (M,) prompts without any.
        near_MK: (M, K) their neighbours, as numbers of prompts.
        cosine_MK: (M, K) how alike they are; below 0 counts as 0.
    """
    weight_MK = np.maximum(cosine_MK, 0.0) / max(1, near_MK.shape[1])
    first, second = seen.first.copy(), seen.second.copy()
    first[places_M] = (weight_MK * seen.first[near_MK]).sum(axis=1)
    second[places_M] = (weight_MK * seen.second[near_MK]).sum(axis=1)
    return Evidence(seen.binary, first, second, seen.there)


def worth(rate: Numbers, target: float) -> Numbers:
    """Returns p^(2t) (1-p)^(2(1-t)): highest at the target, and p(1-p) where that is 1/2."""
    return np.asarray(rate ** (2 * target) * (1 - rate) ** (2 * (1 - target)))


def expected(found: Evidence, prior: float, target: float) -> Numbers:
    """Returns the spread that is expected of each prompt: (N,); of 0/1 rewards :func:`worth`, else a deviation.

    Args:
        found: The evidence.
        prior: m, in rewards.
        target: t; of other rewards it says nothing.
    """
    if not found.binary:
        return np.asarray(np.sqrt((prior * pooled_variance(found) + found.first) / (prior + found.second)))
    a, b = (torch.from_numpy(prior / 2 + each) for each in (found.first, found.second))
    more_a, more_b = a + 2 * target, b + 2 * (1 - target)
    log_ratio = _log_beta(more_a, more_b) - _log_beta(a, b)
    return np.asarray(log_ratio.exp().numpy())


def drawn(found: Evidence, prior: float, target: float, generator: np.random.Generator) -> Numbers:
    """Returns the spread of each prompt under a draw of what is not known: (N,), for Thompson sampling.

    Args:
        found: The evidence.
        prior: m, in rewards.
        target: t.
        generator: The source of randomness.
    """
    if not found.binary:
        scale_N = prior * pooled_variance(found) + found.first
        return np.asarray(np.sqrt(scale_N / generator.chisquare(prior + found.second)))
    return worth(generator.beta(prior / 2 + found.first, prior / 2 + found.second), target)


def optimistic(found: Evidence, prior: float, target: float) -> Numbers:
    """Returns what is expected of the prompts that were seen, and for the others the most that there may be: (N,).

    That is :func:`worth` at the target; of other rewards the highest that is expected of a prompt that was seen.
    """
    expected_N = expected(found, prior, target)
    if found.binary:
        most = float(worth(np.array([target]), target)[0])
    else:
        most = float(expected_N[found.there].max()) if found.there.any() else 0.0
    return np.where(found.there, expected_N, most)


def pooled_variance(found: Evidence) -> float:
    """Returns v0, the variance within prompts, of those that were seen: 0 where none was seen twice."""
    degrees = float(found.second[found.there].sum())
    return float(found.first[found.there].sum()) / degrees if degrees > 0 else 0.0


def _log_beta(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
