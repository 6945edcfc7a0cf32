"""The interface of an order: in which order are the rows of a stretch trained on?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dataflex.core.component import Component

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dataflex.core.context import UpdateContext

__all__ = ["Order"]


class Order(Component, ABC):
    """Puts rows in order by their scores.

    Attributes:
        needs_scores: Whether it looks at scores at all.
        by: Where its scores come from where the run does not say; None for the selector's, or the loss.
        over: What it arranges where the run does not say: ``run`` or ``stretch``; None leaves it to the run.
    """

    needs_scores: ClassVar[bool] = True
    by: ClassVar[str | None] = None
    over: ClassVar[str | None] = None
    contract: ClassVar[str] = "it needs arrange(scores, *, context) -> permutation"

    @classmethod
    def accepts(cls, component: type) -> bool:
        """Returns whether ``component`` is an order."""
        return issubclass(component, Order)

    @abstractmethod
    def arrange(self, scores_S: NDArray[np.float64], *, context: UpdateContext) -> NDArray[np.int64]:
        """Returns a permutation of the S rows.

        Args:
            scores_S: (S,) the score of each row, NaN where there is none.
            context: The state of the run.
        """

    def share(self, context: UpdateContext) -> float:
        """Returns the share of the easiest rows that may be trained on, in (0, 1]."""
        return 1.0
