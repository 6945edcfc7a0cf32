"""Rows drawn with given probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def draw(p_N: NDArray[np.float64], count: int, replacement: bool, generator: np.random.Generator) -> NDArray[np.int64]:
    """Returns ``count`` row numbers drawn with the given probabilities, in the order of drawing.

    Without replacement, each next row is drawn from those left: the rows with the smallest e_i / p_i, e_i exponential
    (Efraimidis and Spirakis 2006, algorithm A-Res in logarithms).

    Args:
        p_N: (N,) probabilities; rows with 0 are never drawn.
        count: How many; without replacement at most the number of rows with p > 0.
        replacement: Whether a row may come more than once.
        generator: The source of randomness.
    """
    if replacement:
        return generator.choice(len(p_N), size=count, p=p_N)
    with np.errstate(divide="ignore"):
        keys_N = generator.standard_exponential(len(p_N)) / p_N
    return np.argsort(keys_N, kind="stable")[:count]
