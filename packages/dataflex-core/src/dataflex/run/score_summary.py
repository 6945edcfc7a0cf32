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


def along(scores: NDArray[np.floating[Any]], stretches: int = BINS) -> dict[str, list[Any]]:
    """Returns the mean score of stretches of rows in their order, and where each begins, as a share of all.

    Args:
        scores: (S,) scores of the rows in the order of training, NaN for none.
        stretches: How many, at most one for each row.
    """
    cuts = np.linspace(0, len(scores), min(stretches, len(scores)) + 1).astype(np.int64)
    pairs = list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))
    means = [finite_mean(scores[first:last]) for first, last in pairs]
    return {"places": [first / len(scores) for first, _ in pairs], "scores": means}


def finite_mean(values: NDArray[np.floating[Any]]) -> float | None:
    """Returns the mean of the finite numbers; None without any."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None
