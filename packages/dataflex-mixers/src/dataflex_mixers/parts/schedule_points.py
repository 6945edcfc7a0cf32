"""A mixture that moves along given points: the mathematics and the parsing of the ``schedule`` mixer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dataflex.core.errors import Problem, nearest
from dataflex.core.parameter_checks import is_number
from numpy.typing import NDArray

from dataflex_mixers.parts.simplex import Shares

INTERPOLATIONS = ("linear", "cosine", "step")
KEYS = ("at", "proportions")


@dataclass(frozen=True)
class Curve:
    """Mixtures at P points, and the way from one to the next.

    Attributes:
        at: (P,) increasing positions, in steps or tokens.
        shares: (P, K) the mixture at each, sums 1.
        interpolation: ``linear``; ``cosine``, slow at both ends; ``step``, the mixture of the point passed last.
    """

    at: NDArray[np.float64]
    shares: NDArray[np.float64]
    interpolation: str

    def value(self, position: float) -> Shares:
        """Returns the (K,) mixture at a position; before the first point and after the last, that point's."""
        right = int(np.searchsorted(self.at, position, side="right"))
        if right == 0 or right == len(self.at) or self.interpolation == "step":
            return np.array(self.shares[max(right - 1, 0)])
        u = (position - self.at[right - 1]) / (self.at[right] - self.at[right - 1])
        if self.interpolation == "cosine":
            u = (1 - np.cos(np.pi * u)) / 2
        mixed: Shares = (1 - u) * self.shares[right - 1] + u * self.shares[right]
        return mixed


def parse_curve(points: Any, interpolation: Any, names: Sequence[str]) -> Curve | list[Problem]:
    """Returns the curve that the user's points describe, or everything that is wrong with them.

    Args:
        points: A list of ``{at: number, proportions: [one per source] or {source: number}}``.
        interpolation: One of :data:`INTERPOLATIONS`.
        names: The K sources.
    """
    problems: list[Problem] = []
    if interpolation not in INTERPOLATIONS:
        what = f"found {interpolation!r}, allowed: {', '.join(INTERPOLATIONS)}"
        problems.append(Problem("interpolation", what, nearest(str(interpolation), INTERPOLATIONS)))
    if not isinstance(points, list | tuple) or not points:
        what = f"found {points!r}, allowed: a list of points, each with at: and proportions:"
        return [*problems, Problem("points", what)]
    parsed = [_point(f"points[{i}]", point, names, problems) for i, point in enumerate(points)]
    if problems:
        return problems
    at, shares = (np.array(column, dtype=np.float64) for column in zip(*parsed, strict=True))
    if (np.diff(at) <= 0).any():
        what = f"at is {', '.join(f'{x:g}' for x in at)}; each must be larger than the one before"
        return [Problem("points", what, "sort them, and give each position once")]
    largest = shares.max(axis=1, keepdims=True)
    shares = shares / np.where(largest > 1e300, largest, 1.0)  # a sum may be more than a number can hold
    return Curve(at, shares / shares.sum(axis=1, keepdims=True), interpolation)


def _point(where: str, point: Any, names: Sequence[str], problems: list[Problem]) -> tuple[float, list[float]]:
    if not isinstance(point, Mapping) or set(point) != set(KEYS):
        problems.append(Problem(where, f"found {point!r}, allowed: a mapping with the keys at and proportions"))
        return 0.0, []
    at, given = point["at"], point["proportions"]
    if not is_number(at) or at < 0:
        problems.append(Problem(f"{where}.at", f"found {at!r}, allowed: a number of 0 or more"))
        at = 0.0
    shares = _by_source(f"{where}.proportions", given, names, problems)
    wrong = [share for share in shares if not is_number(share) or share < 0]
    if wrong or not any(shares):
        found = ", ".join(map(repr, wrong)) or "only zeros"
        what = f"found {found}, allowed: numbers of 0 or more, not all 0"
        problems.append(Problem(f"{where}.proportions", what))
    return at, shares


def _by_source(where: str, given: Any, names: Sequence[str], problems: list[Problem]) -> list[Any]:
    """Returns one entry per source; a placeholder where the whole is wrong."""
    if isinstance(given, Mapping):
        unknown = [str(name) for name in given if name not in names]
        if not unknown:
            return [given.get(name, 0) for name in names]
        what = f"no source {', '.join(unknown)}; the sources: {', '.join(names)}"
        problems.append(Problem(where, what, nearest(unknown[0], names)))
    elif isinstance(given, list | tuple) and len(given) == len(names):
        return list(given)
    else:
        what = f"found {given!r}, allowed: {len(names)} numbers, one per source ({', '.join(names)})"
        problems.append(Problem(where, what))
    return [1] * len(names)
