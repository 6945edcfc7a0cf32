"""Which target rows pulled a row's score: what a component answers that explains itself.

Letters: S rows that are explained, M target rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MOST_PULLS = 3
"""Target rows that are named for a row, at most."""
MOST_TARGETS = 1024
"""Target rows that are put through a model, or embedded, only to explain; of more, a sample."""


@dataclass(frozen=True)
class Pull:
    """A target row that pulled a row's score.

    Attributes:
        set: Name of the evaluation set.
        target: Number of the row in that set.
        share: Its share of the row's score: its term over the sum of all terms. Negative where the term has the other
            sign than the sum, and above 1 where others take away from it.
    """

    set: str
    target: int
    share: float


@dataclass(frozen=True)
class Explanation:
    """Why S rows have their scores.

    Attributes:
        pulls: For each row up to :data:`MOST_PULLS` target rows, those with the largest share first; none where nothing
            pulled it.
        scores: (S,) what the shares are shares of; NaN for a row that cannot be explained. Of a weighter, the weights.
        targets: (set, target row) -> its token ids, of every target row that is named.
        note: What a reader must know of it, such as that a sample of the target rows was looked at; blank for nothing.
    """

    pulls: Sequence[Sequence[Pull]]
    scores: NDArray[np.float64]
    targets: Mapping[tuple[str, int], Sequence[int]] = field(default_factory=dict)
    note: str = ""


def largest_shares(terms_M: NDArray[np.float64], total: float, most: int = MOST_PULLS) -> list[tuple[int, float]]:
    """Returns the places with the largest shares of a score, and the shares, largest first; of equal ones the first.

    A share is the place's term over the total, so that of a negative score the most negative terms come first. None
    where the total is 0, not finite, or so small that a share is not finite.

    Args:
        terms_M: (M,) the terms; NaN for none.
        total: Their sum, or that of all terms where these are a sample.
        most: How many.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shares_M = terms_M / total
    known = np.flatnonzero(~np.isnan(terms_M))
    if not np.isfinite(total) or total == 0 or not np.isfinite(shares_M[known]).all():
        return []
    order = known[np.argsort(-shares_M[known], kind="stable")]
    return [(int(place), float(shares_M[place])) for place in order[:most]]


def sampled_targets(
    count: int, generator: np.random.Generator, needed: Sequence[int] = (), most: int = MOST_TARGETS
) -> NDArray[np.int64]:
    """Returns which of ``count`` target rows are looked at, ascending: all, or a sample with the needed ones.

    Args:
        count: How many there are.
        generator: Draws the sample; the same on every rank.
        needed: Rows that must be in it.
        most: How many are looked at, besides the needed ones.
    """
    if count <= most:
        return np.arange(count, dtype=np.int64)
    drawn = generator.choice(count, size=most, replace=False)
    return np.union1d(drawn, np.asarray(needed, dtype=np.int64)).astype(np.int64)


def sample_note(looked_at: int, count: int) -> str:
    """Returns the note of an explanation that looked at some of the target rows; blank where it was all."""
    return "" if looked_at >= count else f"looked at a sample of {looked_at} of {count} target rows"
