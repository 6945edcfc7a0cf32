"""Rows by their loss under the present model: mostly the easy rows, the hard ones, or those between.

Losses of all rows -> two quantiles -> three buckets -> the focused bucket counts ``focus_weight`` times -> a weighted
draw.

    l_i = mean token loss of row i                                    one forward pass over the dataset
    low <= q1 < medium <= q2 < high                                   q1, q2: quantiles of the finite losses
    p_i proportional to w_i^(1 / temperature)                         w_i = focus_weight in the focused bucket, else 1

With ``scores: seen`` l_i is the loss that training saw last, and no pass is made; a row that was never seen counts as
one of the focus, so that it is reached. See :mod:`dataflex_selectors.parts.row_losses`.

Origin: the loss selector of OpenDCAI/DataFlex. Two choices here: rows outside of the focus keep a weight of 1, so that
the model goes on seeing all of the data, and a row without labels has no loss and is never drawn. A loss does not say
why a row is hard: where labels are wrong, ``focus: high``, the default there, chooses the wrong ones and is worse than
random rows. So the default here is ``low``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.context import UpdateContext
from dataflex.core.errors import Problem
from dataflex.core.parameter_checks import is_number, one_of, positive, require
from dataflex.core.registry import register_selector
from dataflex.train.selector.base_selector import Selection
from numpy.typing import NDArray

from dataflex_selectors.parts.drawing import draw
from dataflex_selectors.parts.enough import SHOW_LABELS, require_enough
from dataflex_selectors.parts.finite_scores import scored_places
from dataflex_selectors.parts.row_losses import ByLosses

if TYPE_CHECKING:
    import torch

FOCUS = ("low", "medium", "high")


def focus_log_weights(
    losses_N: NDArray[np.floating[Any]], focus: str, focus_weight: float, quantiles: tuple[float, float]
) -> NDArray[np.float64]:
    """Returns the logarithm of the weight of each row: (N,), -inf without a loss.

    Args:
        losses_N: (N,) mean token losses.
        focus: The bucket that counts more: ``low``, ``medium`` or ``high``.
        focus_weight: How many times as likely a row of that bucket is as another row, at temperature 1.
        quantiles: Where the buckets end. A quantile is a row's own loss (the smallest with at least that share of
            rows at or below it), so that rounding moves no row into another bucket. Rows of equal loss share a bucket,
            which may leave another one empty; with an empty focus all rows are equally likely.
    """
    scored = scored_places(losses_N)
    if not len(scored):
        return np.full(len(losses_N), -np.inf)
    ends = np.quantile(losses_N[scored], quantiles, method="inverted_cdf")
    bucket_M = np.searchsorted(ends, losses_N[scored], side="left")  # low <= q1 < medium <= q2 < high
    log_weight_N = np.full(len(losses_N), -np.inf)
    log_weight_N[scored] = np.where(bucket_M == FOCUS.index(focus), np.log(focus_weight), 0.0)
    return log_weight_N


@register_selector("loss")
class LossSelector(ByLosses):
    """Draws rows by the bucket that their loss under the present model falls into.

    Args:
        focus: The bucket that counts more: low, medium or high losses.
        focus_weight: How many times as likely a row of the focus is as another, at temperature 1.
        quantiles: The two shares of rows that end the low and the medium bucket; null for thirds.
        temperature: Below 1 sharpens the focus, above 1 softens it.
        **run: Where losses come from, and what every selector is given: see :class:`ByLosses`. ``cache_dir`` keeps what
            a long scoring pass has computed, so that an interrupted run goes on from there.

    Raises:
        ConfigError: A parameter is out of its range; the message holds all that are.
    """

    keeps_losses = True

    def __init__(
        self,
        *,
        focus: str = "low",
        focus_weight: float = 5.0,
        quantiles: Sequence[float] | None = None,
        temperature: float = 1.0,
        **run: Any,
    ) -> None:
        super().__init__(**run)
        require(
            "loss selector",
            *self.problems,
            one_of("focus", focus, FOCUS),
            positive("focus_weight", focus_weight),
            _two_shares_or_null("quantiles", quantiles),
            positive("temperature", temperature),
        )
        self.focus = focus
        self.focus_weight = float(focus_weight)
        self.quantiles = (1 / 3, 2 / 3) if quantiles is None else (float(quantiles[0]), float(quantiles[1]))
        self.temperature = float(temperature)

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Scores all rows and draws ``num_samples`` of them; the scores are their losses, NaN where never seen.

        See the base class.

        Raises:
            ComponentError: Fewer rows have a loss than were asked for.
        """
        context: UpdateContext = kwargs["context"]
        if self._losses.are_seen:
            losses_N = self._losses.now(model, step_id, context.scores)
            unseen_N = self._losses.unseen(losses_N)
        else:
            losses_N = self.scores(model, step_id, context=context)
            unseen_N = np.zeros(len(losses_N), dtype=np.bool_)
        found = len(scored_places(losses_N)) + int(unseen_N.sum())
        wanted = 1 if self.replacement else num_samples
        require_enough(wanted, found, len(losses_N), way_out=f"{SHOW_LABELS}, replacement: true")
        log_weight_N = focus_log_weights(losses_N, self.focus, self.focus_weight, self.quantiles)
        log_weight_N[unseen_N] = max(0.0, np.log(self.focus_weight))
        rows = draw(log_weight_N, num_samples, self.replacement, self.generator(context.update), self.temperature)
        return Selection(rows, losses_N[rows], candidates=losses_N)

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float32]:
        """Returns the loss of every row under the model now: (N,), NaN without a label. See the base class."""
        context: UpdateContext | None = kwargs.get("context")
        return self._losses.fresh(model, step_id, None if context is None else context.scores)


def _two_shares_or_null(key: str, found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is None or a list of two numbers 0 < a < b < 1."""
    if found is None:
        return None
    is_pair = isinstance(found, list | tuple) and len(found) == 2 and all(map(is_number, found))
    if is_pair and 0 < found[0] < found[1] < 1:
        return None
    return Problem(key, f"found {found!r}, allowed: two numbers 0 < a < b < 1, or null for thirds")
