"""Rows in several sweeps over all scores, each from the lowest to the highest (arXiv 2506.21545, folding).

Of rows sorted by their score, sweep l of L takes those at places l, l + L, l + 2L, ...: every sweep is a curriculum on
an even sample of the rows, so that what was learnt first is met again.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from dataflex.core.parameter_checks import count, require
from dataflex.core.registry import register_order
from numpy.typing import NDArray

from dataflex_selectors.orders.pattern import Pattern


@register_order("folding")
class FoldingOrder(Pattern):
    """Rows in several sweeps from the lowest score to the highest.

    Args:
        layers: How many sweeps; 1 is sorting.
        **shared: ``window`` and ``ascending``; see :class:`~dataflex_selectors.orders.pattern.Pattern`.

    Raises:
        ConfigError: A parameter is out of its range.
    """

    title: ClassVar[str] = "folding order"

    def __init__(self, layers: int = 5, **shared: Any) -> None:
        super().__init__(**shared)
        require(self.title, *self.problems, count("layers", layers))
        self.layers = layers

    def path(self, sorted_S: NDArray[np.signedinteger], generator: np.random.Generator) -> NDArray[np.signedinteger]:
        """Returns one sweep after the other."""
        return folded(sorted_S, self.layers, self.turning)


def folded(sorted_S: NDArray[np.signedinteger], layers: int, turning: bool = False) -> NDArray[np.signedinteger]:
    """Returns rows in sweeps: (S,), sweep l holding those at places l, l + L, l + 2L, ...

    Args:
        sorted_S: (S,) rows, sorted.
        layers: Sweeps, L of them.
        turning: Whether every second sweep goes backwards.
    """
    if layers == 1 or len(sorted_S) < 2:
        return sorted_S
    sweeps = [sorted_S[layer::layers] for layer in range(min(layers, len(sorted_S)))]
    return np.concatenate([sweep[::-1] if turning and layer % 2 else sweep for layer, sweep in enumerate(sweeps)])
