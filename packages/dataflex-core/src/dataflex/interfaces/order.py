"""The interface of an order: in which order are the rows of the next stretch of training seen?

An order is a class with one method:

    import numpy as np
    from dataflex.core.registry import register_order
    from dataflex.interfaces.order import Order

    @register_order("easy_first")
    class EasyFirst(Order):
        def arrange(self, scores, *, context):
            return np.argsort(scores, kind="stable")

It runs with ``train_type: dynamic_reorder``, ``component_name: easy_first``. Which rows are arranged, and where their
scores come from, is the user's to say; an order knows rows by their place among the scores alone. Every rank calls it
with the same scores and must return the same permutation: draw from :meth:`Order.generator`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from dataflex.core.component import Component
from dataflex.core.cost import Ahead, Cost

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dataflex.core.context import UpdateContext

__all__ = ["Order"]


class Order(Component, ABC):
    """Arranges rows that have been chosen already; it adds none and leaves none out.

    Attributes:
        needs_scores: Whether it looks at scores. One that does not, such as a random order, is given zeros, and a
            ``by`` for it is refused.
        by: The scores that it always takes, whatever the user says, such as ``length``; None for the user's ``by``.
        over: ``run`` where only arranging all rows that are left of the pass makes sense; None for the user's ``over``.
    """

    needs_scores: ClassVar[bool] = True
    by: ClassVar[str | None] = None
    over: ClassVar[str | None] = None
    contract: ClassVar[str] = "it needs arrange(scores, *, context) -> a permutation of the rows"

    @classmethod
    def accepts(cls, component: type) -> bool:
        """Returns whether ``component`` is an order."""
        return issubclass(component, Order)

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Nothing: an order sees numbers alone, and the scores count where they are made. See the base class."""
        return Cost()

    @abstractmethod
    def arrange(self, scores: NDArray[np.float64], *, context: UpdateContext) -> NDArray[np.integer]:
        """Returns the order in which the rows are trained on: a permutation, first trained first.

        Called on every rank with the same scores, between two optimizer steps. S may be 100 million, so work on whole
        arrays; :func:`dataflex.core.stable_sort.stable_order` sorts them in little memory.

        Args:
            scores: (S,) scores of the rows that may be drawn. Infinities are numbers like others. NaN: the row has
                none; such rows belong at the end, in the order in which they stand. It must not be changed.
            context: The update. Random numbers come from ``self.generator(context.update)``.

        Returns:
            (S,) each of 0 to S - 1 once, as integers of any width; int32 holds them below 2**31 rows. What is anything
            else stops the run.
        """

    def share(self, context: UpdateContext) -> float:
        """Returns how many rows of the pass may be drawn in the stretch that begins now: those of the lowest scores.

        Optional, for an order with ``over = "run"`` that holds rows back (a curriculum by competence). Called on every
        rank before :meth:`arrange`, which is then given those of them that are left of the pass.

        Args:
            context: The update.

        Returns:
            A share of all rows of the pass, above 0 and at most 1. 1 holds nothing back.
        """
        return 1.0
