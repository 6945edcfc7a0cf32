"""Easy rows first, by what the model should be able to learn from already: a curriculum by competence.

Platanios, Stretcu, Neubig, Poczos and Mitchell, Competence-based Curriculum Learning for Neural Machine Translation,
NAACL 2019, arXiv 1903.09848. At step t of T the rows that may be drawn are the share c(t) of all rows that has the
lowest scores, and they are drawn at random:

    c(t) = min(1, t (1 - c0) / T + c0)               linear competence
    c(t) = min(1, sqrt(t (1 - c0^2) / T + c0^2))     square-root competence

The root lets new rows in at a rate that falls as their number grows, so that each new row is as likely to be seen as
the ones before.
"""

from __future__ import annotations

import numpy as np
from dataflex.core.context import UpdateContext
from dataflex.core.parameter_checks import count_or_null, one_of, require, share
from dataflex.core.registry import register_order
from numpy.typing import NDArray

from dataflex_selectors.orders.shuffle import shuffled
from dataflex_selectors.orders.without_score import ScoredOrder

POWERS = {"sqrt": 2, "linear": 1}


@register_order("pacing")
class PacingOrder(ScoredOrder):
    """Rows at random from the share with the lowest scores, which grows until it is all rows.

    Args:
        competence: How the share grows: ``sqrt`` or ``linear``.
        start: The share at step 0, c0.
        until_step: The step from which on every row may be drawn, T; None: the last of the run.

    Raises:
        ConfigError: A parameter is out of its range.
    """

    over = "run"

    def __init__(self, competence: str = "sqrt", start: float = 0.01, until_step: int | None = None) -> None:
        checks = one_of("competence", competence, tuple(POWERS)), share("start", start)
        require("pacing order", *checks, count_or_null("until_step", until_step, "the last step of the run"))
        self.competence, self.start, self.until_step = competence, float(start), until_step

    def arrange(self, scores: NDArray[np.float64], *, context: UpdateContext) -> NDArray[np.integer]:
        """Returns the rows that may be drawn in a random order, those without a score last. See the base class."""
        order_S = shuffled(len(scores), self.generator(context.update))
        if self.scored(scores) == len(scores):
            return order_S
        missing_S = np.isnan(scores)
        return np.concatenate([order_S[~missing_S[order_S]], np.flatnonzero(missing_S).astype(order_S.dtype)])

    def share(self, context: UpdateContext) -> float:
        """Returns the competence at the step of the update. See the base class."""
        steps = context.total_steps if self.until_step is None else self.until_step
        return competence(context.step, steps, self.start, POWERS[self.competence])


def competence(step: int, steps: int, start: float, power: int) -> float:
    """Returns c(t): the ``power``-th root of what grows from ``start`` to the ``power`` to 1, in equal steps.

    Args:
        step: t.
        steps: T.
        start: c0, above 0 and at most 1.
        power: 1 for linear, 2 for sqrt.
    """
    if step >= steps:
        return 1.0
    grown = step * (1 - start**power) / steps + start**power
    return float(min(1.0, max(start, grown ** (1 / power))))
