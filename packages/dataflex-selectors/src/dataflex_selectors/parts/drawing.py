"""Rows drawn with probabilities that are given by their logarithms.

    p_i = exp(l_i / T) / sum_k exp(l_k / T)

Without replacement the rows with the highest l_i / T + g_i are taken, g_i standard Gumbel noise: each next row is drawn
with these probabilities from those left (Gumbel top-k; Efraimidis and Spirakis 2006 in logarithms). Nothing is raised
to a power, so no difference is too large: towards T = 0 the highest l are taken, however many lie far below the first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataflex_selectors.parts.ranking import first_places

_ROWS = 2**22  # that get their noise at a time: 32 MB an array


def draw(
    logits_N: NDArray[np.float64],
    count: int,
    replacement: bool,
    generator: np.random.Generator,
    temperature: float = 1.0,
) -> NDArray[np.int64]:
    """Returns ``count`` row numbers, in the order of drawing.

    Args:
        logits_N: (N,) l, the logarithms of the weights; -inf for never, at least one above that.
        count: How many; without replacement at most the number of rows above -inf.
        replacement: Whether a row may come more than once.
        generator: The source of randomness.
        temperature: T, above 0.
    """
    if replacement:
        return generator.choice(len(logits_N), size=count, p=probabilities(logits_N, temperature))
    found = [_first(logits_N, start, count, generator, temperature) for start in range(0, len(logits_N), _ROWS)]
    places, keys, noise = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return np.asarray(places[first_places(count, keys, noise)])


def _first(
    logits_N: NDArray[np.float64], start: int, count: int, generator: np.random.Generator, temperature: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Returns the first of the rows from ``start`` on, at most ``count``, with what they are sorted by, ascending."""
    part = logits_N[start : start + _ROWS]
    with np.errstate(divide="ignore"):
        noise = -np.log(generator.standard_exponential(len(part)))
    live = np.flatnonzero(part > -np.inf)
    logits, noise = part[live], noise[live]
    # l + T g sorts as l / T + g does. For a small T, l / T would overflow, and rounding would remove g, which decides
    # between equal l.
    keys = logits / temperature + noise if temperature > 1 else logits + temperature * noise
    first = first_places(count, -keys, -noise)
    return start + live[first], -keys[first], -noise[first]


def probabilities(logits_N: NDArray[np.float64], temperature: float = 1.0) -> NDArray[np.float64]:
    """Returns p: (N,), sum 1.

    Args:
        logits_N: (N,) l; -inf gives 0, at least one lies above that.
        temperature: T, above 0.
    """
    powers_N = relative(logits_N, temperature)
    return np.asarray(powers_N / powers_N.sum())


def relative(logits_N: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Returns exp((l - max l) / T): (N,), 1 for the highest, 0 where that is below what a number can hold."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(np.exp((logits_N - logits_N.max()) / temperature))


def logarithms(weights_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the logarithms of weights of at least 0: (N,), -inf for 0."""
    with np.errstate(divide="ignore"):
        return np.log(weights_N)
