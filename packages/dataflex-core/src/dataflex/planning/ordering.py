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
from dataflex.interfaces.order import Order
from dataflex.planning.answers import checked_permutation

Scores = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""Returns the scores of some rows of the train dataset."""


class ArrangedPasses:
    """Passes over the rows of a source, each arranged by an order.

    A pass is arranged when it begins. Where scores change, what is left of it is arranged again whenever the order
    takes part in an update. Before the order takes part for the first time the rows come in a random order.

    Args:
        order: Arranges.
        first: The first row of the source.
        size: Rows of the source.
        changes: Whether the scores of a row, or the rows that may be drawn, are other ones at another update.
    """

    def __init__(self, order: Order, first: int, size: int, *, changes: bool) -> None:
        self._order, self._first, self._size, self._changes = order, first, size, changes
        self._type: Any = np.int32 if size < 2**31 else np.int64
        self._seen_N = np.zeros(size, dtype=np.bool_)  # in the present pass
        self._before_N = self._seen_N  # the same, when what is left was arranged
        self._left: NDArray[Any] | None = np.empty(0, dtype=self._type)  # None: to be arranged as it was
        self._taken = 0  # of what was arranged
        self._arranged = self._step = 0  # how often, and at which step last
        self._active = self._narrowed = False

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
            self._left = self._arrangement(context, ~self._before_N, scores, who)[self._taken :]
        if own_N is not None:
            self._narrowed, self._left = True, self._left[own_N[self._left]]
        anew = decides and (self._changes or not self._active)
        self._active = self._active or decides
        parts = [np.empty(0, dtype=np.int64)]
        while count:
            if anew or not len(self._left):
                self._left, anew = self._rest_arranged(own_N, context, scores, who), False
            head, self._left = self._left[:count], self._left[count:]
            self._seen_N[head] = True
            self._taken += len(head)
            count -= len(head)
            parts.append(head.astype(np.int64) + self._first)
        return np.concatenate(parts)

    def state_dict(self) -> dict[str, Any]:
        """Returns the pass: which rows are done, and how the others are arranged.

        Scores that never change give the same arrangement again, so a bit for each row is enough then.
        """
        again = not self._changes and not self._narrowed
        return {
            "seen": np.packbits(self._seen_N),
            "before": np.packbits(self._before_N) if again else None,
            "left": None if again else self._left,
            "taken": self._taken,
            "arranged": self._arranged,
            "step": self._step,
            "active": self._active,
            "narrowed": self._narrowed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._seen_N = self._bits(state["seen"])
        self._before_N = self._seen_N if state["before"] is None else self._bits(state["before"])
        self._left = None if state["left"] is None else np.asarray(state["left"]).astype(self._type)
        self._taken, self._arranged, self._step = int(state["taken"]), int(state["arranged"]), int(state["step"])
        self._active, self._narrowed = bool(state["active"]), bool(state["narrowed"])
        if not self._arranged:
            self._left = np.empty(0, dtype=self._type)

    def _bits(self, packed: Any) -> NDArray[np.bool_]:
        return np.unpackbits(np.asarray(packed), count=self._size).astype(np.bool_)

    def _rest_arranged(
        self, own_N: NDArray[np.bool_] | None, context: UpdateContext, scores: Scores, who: str
    ) -> NDArray[Any]:
        """Returns what is left of the pass, or the next one where nothing is, arranged."""
        self._arranged, self._step = self._arranged + 1, context.step
        candidates_N = self._admitted(own_N, context, scores, who)
        if not (candidates_N & ~self._seen_N).any():  # a pass begins
            self._seen_N[:] = False
        self._before_N, self._taken = self._seen_N | ~candidates_N, 0
        return self._arrangement(context, ~self._before_N, scores, who)

    def _arrangement(self, context: UpdateContext, rest_N: NDArray[np.bool_], scores: Scores, who: str) -> NDArray[Any]:
        """Returns these rows in the order of the arrangement that was begun last."""
        rows = np.flatnonzero(rest_N).astype(self._type)
        if not self._active:
            rng = self._order.generator(f"before the first update, {self._arranged}")
            return rows[rng.permutation(len(rows))]
        own = self._counted(context)
        answer = self._order.arrange(scores(rows.astype(np.int64) + self._first), context=own)
        return rows[checked_permutation(answer, len(rows), who)]

    def _admitted(
        self, own_N: NDArray[np.bool_] | None, context: UpdateContext, scores: Scores, who: str
    ) -> NDArray[np.bool_]:
        """Returns the rows that may be drawn: those of the pool, or the share of them with the lowest scores."""
        pool_N = np.ones(self._size, dtype=np.bool_) if own_N is None else own_N
        share = self._order.share(self._counted(context)) if self._active else 1.0
        if not 0 < share <= 1:
            raise ComponentError(f"{who} gave the share {share}; expected a number above 0, up to 1")
        if share == 1:
            return pool_N
        rows = np.flatnonzero(pool_N)
        ranked = rows[np.argsort(scores(rows + self._first), kind="stable")]  # those without a score come last
        lowest_N = np.zeros_like(pool_N)
        lowest_N[ranked[: max(1, int(np.ceil(share * len(rows))))]] = True
        return lowest_N

    def _counted(self, context: UpdateContext) -> UpdateContext:
        """Returns the context with the number of the arrangement: another order each time, also twice at an update."""
        return replace(context, update=self._arranged - 1, step=self._step)


def arranged_stretch(
    order: Order, rows: NDArray[np.int64], context: UpdateContext, scores: Scores, who: str
) -> NDArray[np.int64]:
    """Returns where each row of the stretch stands in ``rows``: (S,) a permutation."""
    return checked_permutation(order.arrange(scores(rows), context=context), len(rows), who)
