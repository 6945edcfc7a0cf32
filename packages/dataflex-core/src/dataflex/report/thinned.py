"""Fewer points for the same picture: what a screen cannot show is left out of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

POINTS = 1000
"""Most points of a curve."""


def largest_triangles(x_P: NDArray[np.float64], y_P: NDArray[np.float64], most: int = POINTS) -> NDArray[np.int64]:
    """Returns the places of the points that keep the shape of a curve: the first, the last, and one of each bucket.

    Of a bucket it is the point that spans the largest triangle with the one taken before and the mean of the next
    bucket (Steinarsson 2013, "Downsampling Time Series for Visual Representation", section 4.2).

    Args:
        x_P: (P,) ascending.
        y_P: (P,) finite.
        most: How many points, at least 3.
    """
    count = len(x_P)
    if count <= most:
        return np.arange(count)
    edges = np.linspace(1, count - 1, most - 1).astype(np.int64)
    taken = [0]
    for i in range(most - 2):
        low, high = edges[i], edges[i + 1]
        after = slice(high, edges[i + 2] if i + 2 < len(edges) else count)
        mean_x, mean_y = x_P[after].mean(), y_P[after].mean()
        last = taken[-1]
        area = np.abs(
            (x_P[last] - mean_x) * (y_P[low:high] - y_P[last]) - (x_P[last] - x_P[low:high]) * (mean_y - y_P[last])
        )
        taken.append(int(low + area.argmax()))
    return np.array([*taken, count - 1])


def curve(points: Iterable[tuple[float, float | None]], most: int = POINTS) -> tuple[list[Any], list[Any]]:
    """Returns x and y of a curve as JSON takes them, thinned; points without a finite y are left out."""
    known = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    x_P = np.array([x for x, _ in known], dtype=np.float64)
    y_P = np.array([y for _, y in known], dtype=np.float64)
    places = largest_triangles(x_P, y_P, most)
    return plain(x_P[places]), plain(y_P[places])


def evenly(count: int, most: int) -> list[int]:
    """Returns at most ``most`` places of ``count``, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({int(place) for place in np.linspace(0, count - 1, most).round()})


def plain(values: ArrayLike | Sequence[Any], digits: int = 6) -> list[Any]:
    """Returns numbers as JSON takes them: whole ones as such, others with ``digits`` digits, None for no number."""
    found: list[Any] = []
    for value in np.asarray(values, dtype=np.float64).tolist():
        if not math.isfinite(value):
            found.append(None)
        elif value == int(value) and abs(value) < 2**53:
            found.append(int(value))
        else:
            found.append(float(f"{value:.{digits}g}"))
    return found
