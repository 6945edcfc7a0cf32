"""Numbers that say how scores are spread: mean, extremes, quartiles, and a histogram of 20 equal bins."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 20


def summary(scores: NDArray[np.floating[Any]] | None) -> dict[str, Any]:
    """Returns a summary of the finite scores, or nothing without any.

    Args:
        scores: (N,) scores; those that are not finite are left out.

    Returns:
        ``mean``, ``std``, ``min``, ``q1``, ``median``, ``q3``, ``max``, and ``histogram`` with its 21 ``edges`` from
        the lowest score to the highest and 20 ``counts``; a score on an edge belongs to the bin above, the highest to
        the last.
    """
    finite = np.empty(0) if scores is None else scores[np.isfinite(scores)].astype(np.float64, copy=False)
    if not finite.size:
        return {}
    q1, median, q3 = np.quantile(finite, (0.25, 0.5, 0.75)).tolist()
    return {
        "mean": float(finite.mean()),
        "std": float(finite.std()),
        "min": float(finite.min()),
        "q1": q1,
        "median": median,
        "q3": q3,
        "max": float(finite.max()),
        "histogram": histogram(finite),
    }


def histogram(finite: NDArray[np.float64]) -> dict[str, list[Any]]:
    """Returns the edges and counts of 20 equal bins from the lowest to the highest of finite numbers, at least one."""
    low, high = float(finite.min()), float(finite.max())
    step = high / BINS - low / BINS  # high - low may be more than a float holds
    edges = low + np.arange(BINS + 1) * step
    edges[-1] = high
    return {"edges": edges.tolist(), "counts": counted(finite, edges)}


def counted(values: NDArray[np.floating[Any]], edges: NDArray[Any]) -> list[int]:
    """Returns how many values each bin has; those below the first edge are in the first, above the last in the last."""
    places = np.searchsorted(edges, values, side="right") - 1
    found: list[int] = np.bincount(np.clip(places, 0, len(edges) - 2), minlength=len(edges) - 1).tolist()
    return found


def stretches(scores: NDArray[np.floating[Any]], places: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Returns the sum of the finite scores of each of 20 stretches of rows, and how many they are: (2, 20).

    Takes no more memory than a stretch.

    Args:
        scores: (S,) scores.
        places: (S,) where each row of the order stands among them.
    """
    cuts = np.linspace(0, len(places), BINS + 1).astype(np.int64)
    found = np.zeros((2, BINS))
    for stretch in range(BINS):
        part = scores[places[cuts[stretch] : cuts[stretch + 1]]]
        finite = part[np.isfinite(part)].astype(np.float64)
        found[:, stretch] = finite.sum(), len(finite)
    return found


def along(stretches_2X: NDArray[np.float64]) -> dict[str, list[Any]]:
    """Returns the mean score of each stretch, null for one without any, and where it begins, as a share of all rows."""
    means = [total / count if count else None for total, count in stretches_2X.T.tolist()]
    return {"places": [stretch / BINS for stretch in range(BINS)], "scores": means}
