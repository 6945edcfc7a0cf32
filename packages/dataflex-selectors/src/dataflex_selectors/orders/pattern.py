"""What the orders by a pattern share: rows are sorted by their score, led along a path, and jittered.

Yalun Dai et al., Demystifying Data Organization for Enhanced LLM Training, ACL 2026, arXiv 2605.30334. The jitter
(their JIT) shuffles the rows inside of consecutive windows of the arranged rows, so that a batch is not made of rows of
one score, while the trend of the scores stays.

Letters: S rows to arrange, W of a window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from dataflex.core.context import UpdateContext
from dataflex.core.parameter_checks import count, flag, stated
from dataflex.core.stable_sort import stable_order
from numpy.typing import NDArray

from dataflex_selectors.orders.without_score import ScoredOrder


class Pattern(ScoredOrder, ABC):
    """Base of orders that lead rows, sorted by their score, along a path.

    Rows without a score come last, in their own order, and are not jittered.

    Args:
        window: Rows of a window that are shuffled; 0 and 1 shuffle nothing.
        ascending: The lowest score first; False: the highest.

    Attributes:
        title: What errors call it.
        turning: Whether every second sweep, of a pattern that has sweeps, goes backwards.
        problems: What is wrong with these parameters: the derived class gives it to
            :func:`~dataflex.core.parameter_checks.require`, with what is wrong with its own.
    """

    title: ClassVar[str] = "order"
    turning: ClassVar[bool] = False

    def __init__(self, window: int = 0, ascending: bool = True) -> None:
        self.problems = stated(count("window", window, 0), flag("ascending", ascending))
        self.window, self.ascending = window, ascending

    @abstractmethod
    def path(self, sorted_S: NDArray[np.signedinteger], generator: np.random.Generator) -> NDArray[np.signedinteger]:
        """Returns sorted rows in the order of training: (S,). It may change ``sorted_S`` and return it.

        Args:
            sorted_S: (S,) rows with a score, sorted by it; equal ones in the order in which they stand.
            generator: The update's, for a pattern that draws.
        """

    def arrange(self, scores: NDArray[np.float64], *, context: UpdateContext) -> NDArray[np.integer]:
        """Returns the rows along the path, jittered. See the base class."""
        order_S = stable_order(scores, descending=not self.ascending)
        scored = self.scored(scores)
        generator = self.generator(context.update)
        arranged = self.path(order_S[:scored], generator)
        jitter(arranged, self.window, generator)
        return arranged if scored == len(order_S) else np.concatenate([arranged, order_S[scored:]])


def jitter(rows_S: NDArray[np.signedinteger], window: int, generator: np.random.Generator) -> None:
    """Shuffles the rows inside of each window of W in their place; the last window may be a smaller one."""
    window = min(window, len(rows_S))
    if window <= 1:
        return
    whole = len(rows_S) // window * window
    windows = rows_S[:whole].reshape(-1, window)  # a view
    generator.permuted(windows, axis=1, out=windows)
    generator.shuffle(rows_S[whole:])
