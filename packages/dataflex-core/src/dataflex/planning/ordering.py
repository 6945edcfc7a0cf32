"""In which order rows are trained on, as an :class:`~dataflex.interfaces.order.Order` arranges them.

``over: stretch`` arranges the rows that were chosen for a segment. ``over: run`` arranges all rows that are left of a
pass and trains on the head; a row comes once before any comes again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.core.context import UpdateContext
from dataflex.core.errors import ComponentError
from dataflex.core.stable_sort import stable_order
from dataflex.interfaces.order import Order
from dataflex.planning.answers import checked_permutation
from dataflex.run.score_summary import stretches

Scores = Callable[[NDArray[np.int64] | None], NDArray[np.float64]]
"""Returns the scores of some rows of the train dataset, or of all rows of the source, which it does not copy."""

_AT_LEAST = 1024  # rows to look at in one go, where some of them are not in the pool


class ArrangedPasses:
    """Passes over the rows of a source, each arranged by an order.

    A pass is arranged when it begins. Where scores change, what is left of it is arranged again whenever the order
    takes part in an update. Before the order takes part for the first time the rows come in a random order. A row that
    is not in the pool when its turn comes is passed over.

    Cost for N rows: while a pass is arranged, the memory of the order and of its answer; after that 4 bytes a row, and
    at an update the time of the rows that it takes. A mask of zeros takes no memory until it is written to.

    Args:
        order: Arranges.
        first: The first row of the source.
        size: Rows of the source.
        changes: Whether the scores of a row, or the rows that may be drawn, are other ones at another update.

    Attributes:
        along: (2, 20) sums and numbers of the scores along what :meth:`take` arranged last, see
            :func:`~dataflex.run.score_summary.stretches`; None where it arranged nothing by scores.
    """

    def __init__(self, order: Order, first: int, size: int, *, changes: bool) -> None:
        self._order, self._first, self._size, self._changes = order, first, size, changes
        self._type: Any = np.int32 if size < 2**31 else np.int64
        self._seen_N = self._before_N = self._no_rows()
        # seen: in the present pass; before: left out of what was arranged last
        self._left: NDArray[Any] | None = np.empty(0, dtype=self._type)  # None: to be arranged as it was
        self._walked = 0  # of what was arranged: taken, or passed over
        self._arranged = self._step = 0  # how often, and at which step last
        self._active = False
        self.along: NDArray[np.float64] | None = None

    def take(
        self, count: int, own_N: NDArray[np.bool_] | None, context: UpdateContext, scores: Scores, who: str,
        *, decides: bool,
    ) -> NDArray[np.int64]:  # fmt: skip
        """Returns the next rows of the train dataset: (count,) int64. Called on every rank.

        Args:
            count: How many.
            own_N: (rows of the source,) which of them may be taken, at least one; None for all.
            context: The state of the run.
            scores: Gives the scores of rows.
            who: The order, the update and the step.
            decides: Whether the order takes part in this update.
        """
        if self._left is None:
            self._left = self._arrangement(context, self._before_N, scores, who)[self._walked :]
        self.along = None  # also where a resumed run has arranged again what was arranged before
        anew = decides and (self._changes or not self._active)
        self._active = self._active or decides
        parts, missing, look_at = [np.empty(0, dtype=np.int64)], count, count
        while missing:
            if anew or not len(self._left):
                self._left, anew = self._rest_arranged(own_N, context, scores, who), False
            look_at = missing if own_N is None else max(_AT_LEAST, 2 * look_at)
            rows = self._next(missing, look_at, own_N)
            self._seen_N[rows] = True
            missing -= len(rows)
            parts.append(rows.astype(np.int64) + self._first)
        return np.concatenate(parts)

    def _next(self, count: int, look_at: int, own_N: NDArray[np.bool_] | None) -> NDArray[Any]:
        """Returns at most ``count`` of the next ``look_at`` rows: those of the pool. The others are passed over."""
        assert self._left is not None
        head = self._left[:look_at]
        walked = len(head)
        if own_N is not None:
            places = np.flatnonzero(own_N[head])[:count]
            walked = int(places[-1]) + 1 if len(places) == count else walked
            head = head[places]
        self._left = self._left[walked:]
        self._walked += walked
        return head

    def state_dict(self) -> dict[str, Any]:
        """Returns the pass: which rows are done, and how the others are arranged.

        Scores that never change give the same arrangement again, so two bits for each row are enough then.
        """
        again = not self._changes
        return {
            "seen": np.packbits(self._seen_N),
            "before": np.packbits(self._before_N) if again else None,
            "left": None if again else self._left,
            "walked": self._walked,
            "arranged": self._arranged,
            "step": self._step,
            "active": self._active,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._seen_N = self._bits(state["seen"])
        self._before_N = self._seen_N if state["before"] is None else self._bits(state["before"])
        self._left = None if state["left"] is None else np.asarray(state["left"]).astype(self._type)
        self._walked, self._arranged, self._step = int(state["walked"]), int(state["arranged"]), int(state["step"])
        self._active = bool(state["active"])
        if not self._arranged:
            self._left = np.empty(0, dtype=self._type)

    def _bits(self, packed: Any) -> NDArray[np.bool_]:
        return np.unpackbits(np.asarray(packed), count=self._size).view(np.bool_)

    def _no_rows(self) -> NDArray[np.bool_]:
        return np.zeros(self._size, dtype=np.bool_)

    def _rest_arranged(
        self, own_N: NDArray[np.bool_] | None, context: UpdateContext, scores: Scores, who: str
    ) -> NDArray[Any]:
        """Returns what is left of the pass, or the next one where nothing is, arranged."""
        self._arranged, self._step = self._arranged + 1, context.step
        kept_back_N = self._kept_back(own_N, context, scores, who)
        before_N = self._seen_N.copy() if kept_back_N is None else self._seen_N | kept_back_N
        if before_N.all():  # a pass begins
            self._seen_N = self._no_rows()
            before_N = self._no_rows() if kept_back_N is None else kept_back_N
        elif kept_back_N is None and not before_N.any():
            before_N = self._no_rows()
        self._before_N, self._walked = before_N, 0
        return self._arrangement(context, before_N, scores, who)

    def _arrangement(
        self, context: UpdateContext, before_N: NDArray[np.bool_], scores: Scores, who: str
    ) -> NDArray[Any]:
        """Returns the other rows in the order of the arrangement that was begun last."""
        rows = np.flatnonzero(~before_N).astype(self._type) if before_N.any() else None  # None: all
        if not self._active:
            rng = self._order.generator(f"before the first update, {self._arranged}")
            shuffled: NDArray[Any] = np.arange(self._size, dtype=self._type) if rows is None else rows
            rng.shuffle(shuffled)
            return shuffled
        count = self._size if rows is None else len(rows)
        given = scores(None if rows is None else rows + np.int64(self._first))
        answer = self._order.arrange(given, context=self._counted(context))
        places = checked_permutation(answer, count, who)
        if type(self._order).needs_scores:
            self.along = stretches(given, places)
        del given
        return places.astype(self._type) if rows is None else rows[places]

    def _kept_back(
        self, own_N: NDArray[np.bool_] | None, context: UpdateContext, scores: Scores, who: str
    ) -> NDArray[np.bool_] | None:
        """Returns the rows that may not be drawn: those out of the pool, and the share of it with the highest scores.

        None where there are none.
        """
        share = self._order.share(self._counted(context)) if self._active else 1.0
        if not 0 < share <= 1:
            raise ComponentError(f"{who} gave the share {share}; expected a number above 0, up to 1")
        if share == 1:
            return None if own_N is None else ~own_N
        rows = None if own_N is None else np.flatnonzero(own_N)
        ranked = stable_order(scores(None if rows is None else rows + self._first))  # those without a score come last
        lowest = ranked[: max(1, int(np.ceil(share * len(ranked))))]
        back_N = np.ones(self._size, dtype=np.bool_)
        back_N[lowest if rows is None else rows[lowest]] = False
        return back_N

    def _counted(self, context: UpdateContext) -> UpdateContext:
        """Returns the context with the number of the arrangement: another order each time, also twice at an update."""
        return replace(context, update=self._arranged - 1, step=self._step)


def arranged_stretch(order: Order, scores: NDArray[np.float64], context: UpdateContext, who: str) -> NDArray[np.int64]:
    """Returns where each row of the stretch stands among them: (S,) a permutation.

    Args:
        order: Arranges.
        scores: (S,) scores of the rows.
        context: The state of the run.
        who: The order, the update and the step.
    """
    return checked_permutation(order.arrange(scores, context=context), len(scores), who)
