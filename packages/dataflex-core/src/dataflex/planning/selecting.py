"""A selector where it stands in a run: on all rows, on those of a pool, or on the rows of one source.

It knows nothing of its place: it is made on a dataset of just these rows, and made anew when they change, so whatever
it remembers by row number belongs to the rows that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.core.component import Component
from dataflex.core.context import UpdateContext
from dataflex.core.decision_hash import decision_hash
from dataflex.core.errors import ComponentError
from dataflex.core.explain import Explanation
from dataflex.core.permutation import RowOrder
from dataflex.interfaces.selector import Selection, Selector
from dataflex.planning.answers import (
    checked_candidates,
    checked_explanation,
    checked_rows,
    checked_scores,
    checked_weights,
)


@dataclass(frozen=True)
class Chosen:
    """Rows with what is known of them.

    Attributes:
        rows: (S,) row numbers of the train dataset, in the order of training.
        scores: (S,) their scores, NaN for none; None where there are none at all.
        weights: (S,) how much each counts in the training loss; None where all count alike.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float64] | None = None
    weights: NDArray[np.float64] | None = None

    @property
    def digest(self) -> str:
        """What two ranks share only if they train on the same rows in the same order, weighed alike."""
        if self.weights is None:
            return decision_hash(self.rows)
        return decision_hash(np.concatenate([self.rows, self.weights.view(np.int64)]))

    def at(self, places: NDArray[np.int64]) -> Chosen:
        """Returns some of them, in that order."""
        scores = None if self.scores is None else self.scores[places]
        return Chosen(self.rows[places], scores, None if self.weights is None else self.weights[places])


@dataclass(frozen=True)
class Candidates:
    """The scores of all rows that were chosen from, for the record.

    Attributes:
        rows: (P,) their numbers in the train dataset; or the number of the first, where they follow each other.
        scores: (P,) NaN for none.
    """

    rows: NDArray[np.int64] | int
    scores: NDArray[np.float32]

    def numbers(self) -> NDArray[np.int64]:
        """Returns the row numbers: (P,)."""
        if isinstance(self.rows, int):
            return np.arange(self.rows, self.rows + len(self.scores), dtype=np.int64)
        return self.rows

    def of_all(self, size: int) -> NDArray[np.float32]:
        """Returns the scores where their rows stand: (size,), NaN for the others."""
        if isinstance(self.rows, int) and len(self.scores) == size:
            return self.scores
        scores_N = np.full(size, np.nan, dtype=np.float32)
        scores_N[self.numbers()] = self.scores
        return scores_N


Make = Callable[[NDArray[np.int64] | None], Selector]
"""Makes the selector on some rows of the train dataset; None for all rows of its place."""


class PlacedSelector:
    """A selector on the rows of its place.

    Args:
        make: Makes it.
        first: The first row of the place.
        size: Rows of the place.
        *key: What the order depends on in which rows that stand come again.
        stands: Whether its choice may have to stand, and is kept: it does not decide at each update.
        distinct: Whether a row must not be chosen twice, whatever the class says: a filter keeps rows.

    Attributes:
        component: The selector; another one after :meth:`narrow`.
    """

    def __init__(
        self, make: Make, first: int, size: int, *key: object, stands: bool = False, distinct: bool = False
    ) -> None:
        self._make, self._first, self._size, self._key = make, first, size, key
        self._stands, self._distinct = stands, distinct
        self._rows: NDArray[np.int64] | None = None
        self._version = 0
        self._standing: Chosen | None = None
        self._answered: tuple[UpdateContext, Chosen] | None = None  # what the selector itself chose last, and when
        self._again = self._warmed = 0  # rows that stand and have come again; rows of the present warm-up
        self._candidates: tuple[NDArray[np.int64] | None, NDArray[np.float64]] | None = None  # until they are taken
        self.component: Any = make(None)

    @property
    def size(self) -> int:
        """Rows that it chooses from."""
        return self._size if self._rows is None else len(self._rows)

    @property
    def has_decided(self) -> bool:
        """Whether rows were chosen, which stand until it chooses again."""
        return self._standing is not None

    def narrow(self, pool_N: NDArray[np.bool_] | None, version: int) -> None:
        """Makes the selector on the rows of its place that are in the pool, where the pool has changed.

        Args:
            pool_N: (N,) which rows of the train dataset are in it; None for all.
            version: Of the pool.
        """
        if version == self._version or pool_N is None:
            return
        self._rows = self._first + np.flatnonzero(pool_N[self._first : self._first + self._size])
        self._version = version
        if len(self._rows):
            self.component = self._make(self._rows)

    def choose(self, model: Any, count: int, context: UpdateContext, who: str, whole: bool = False) -> Chosen:
        """Returns the rows that the selector chooses. Called on every rank.

        Args:
            model: The model being trained.
            count: How many.
            context: The state of the run.
            who: The selector, the update and the step.
            whole: Whether all rows come, as often as they fit, before the selector is asked for what is missing. For
                places that may have fewer rows than are asked for.

        Raises:
            ComponentError: There is no row, or the answer is none.
        """
        if not self.size:
            raise ComponentError(
                f"{who} is asked for {count} rows of a source of which the filters have kept none -> raise keep:, or "
                "leave the filter out"
            )
        passes, asked, self._candidates = 0, count, None
        if whole and not self._repeats:
            passes, asked = divmod(count, self.size)
        parts = [self._all(context, number) for number in range(passes)]
        if asked or not passes:
            parts.append(self._asked(model, asked, context, who))
        chosen = parts[0] if len(parts) == 1 else joined(parts)
        self._standing, self._again, self._warmed = chosen if self._stands else None, 0, 0
        return chosen

    def answered(self, update: int) -> Chosen | None:
        """Returns what the selector itself chose at an update; None where it was not asked."""
        return None if self._answered is None or self._answered[0].update != update else self._answered[1]

    def details(self, update: int) -> Mapping[str, Any]:
        """Returns what the selector says of its choice at an update, for the trace; nothing where it was not asked."""
        asked = self.answered(update) is not None and isinstance(self.component, Selector)
        return self.component.details() if asked else {}

    @property
    def explains(self) -> bool:
        """Whether the selector may say why rows have their scores."""
        return isinstance(self.component, Component) and type(self.component).explains()

    def own(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns those of some rows of the train dataset that the selector chooses from."""
        return rows[self._global(self._local(rows).clip(0, self.size - 1)) == rows] if self.size else rows[:0]

    def explain(self, model: Any, rows: NDArray[np.int64], who: str) -> Explanation | None:
        """Returns why rows have their scores; None where the selector does not say. Called on every rank.

        Args:
            model: The model being trained.
            rows: (S,) different rows of the train dataset, of those that the selector chooses from.
            who: The selector, the update and the step.

        Raises:
            ComponentError: The answer is none.
        """
        assert self._answered is not None, "what did not choose is not asked why"
        context = self._answered[0]
        answer = self.component.explain(model, self._local(rows), context.step, context=context)
        return checked_explanation(answer, count=len(rows), who=who)

    def stand(self, count: int) -> Chosen:
        """Returns rows of those which were chosen last: each once, in another order, before any comes again."""
        assert self._standing is not None
        places = RowOrder(len(self._standing.rows), *self._key, "again").take(self._again, count)
        self._again += count
        return self._standing.at(places)

    def warm_up(self, count: int, done: int | None, who: str) -> Chosen:
        """Returns the rows of a stretch before the first update.

        Args:
            count: How many.
            done: Rows of the same stretch that were trained on before, for a run that was ended inside of it; None
                where they are to be counted here, as a mixture divides the stretch.
            who: The selector and the step.
        """
        if not self.size or not count:
            return Chosen(np.empty(0, dtype=np.int64))
        selector, done = self.component, self._warmed if done is None else done
        whole = done + count
        self._warmed = whole
        answer = selector.warmup(whole, replacement=selector.replacement)[done:]
        local = checked_rows(answer, count=count, size=self.size, replacement=selector.replacement, who=who)
        return Chosen(self._global(local))

    def take_candidates(self) -> Candidates | None:
        """Returns the scores of all rows that it chose from last, once; None where it gave none."""
        found, self._candidates = self._candidates, None
        if found is None:
            return None
        local, scores = found
        with np.errstate(over="ignore"):  # float32 is for looking at
            scores_P = scores.astype(np.float32)
        scores_P[~np.isfinite(scores_P)] = np.nan
        if local is not None:
            return Candidates(self._global(local), scores_P)
        return Candidates(self._first if self._rows is None else self._rows, scores_P)

    def state_dict(self) -> dict[str, Any]:
        """Returns the rows that it is made on, a bit for each row of the place, and those that stand."""
        standing = self._standing
        return {
            "rows": None if self._rows is None else np.packbits(self._marked(self._rows)),
            "version": self._version,
            "again": self._again,
            "warmed": self._warmed,
            "standing": None if standing is None else [standing.rows, standing.scores, standing.weights],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned; the selector itself is made anew on these rows."""
        bits = state["rows"]
        if bits is not None:
            self._rows = self._first + np.flatnonzero(np.unpackbits(np.asarray(bits), count=self._size))
        self._version, self._again, self._warmed = int(state["version"]), int(state["again"]), int(state["warmed"])
        self._standing = None if state["standing"] is None else Chosen(*state["standing"])
        if self._rows is not None and len(self._rows):
            self.component = self._make(self._rows)

    @property
    def _repeats(self) -> bool:
        return bool(self.component.replacement) and not self._distinct

    def _marked(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns which rows of the place these are."""
        marked: NDArray[np.bool_] = np.zeros(self._size, dtype=np.bool_)
        marked[rows - self._first] = True
        return marked

    def _asked(self, model: Any, count: int, context: UpdateContext, who: str) -> Chosen:
        selector = self.component
        if context.scores is not None and len(context.scores) != self.size:
            context = replace(context, scores=context.scores.within(self._global(np.arange(self.size, dtype=np.int64))))
        answer = selector.select(model=model, step_id=context.step, num_samples=count, context=context)
        found = answer if isinstance(answer, Selection) else Selection(answer)
        local = checked_rows(found.indices, count=count, size=self.size, replacement=self._repeats, who=who)
        scores = checked_scores(found.scores, count=count, who=who)
        self._candidates = checked_candidates(found.candidates, size=self.size, who=who)
        weights = checked_weights(found.weights, count=count, declared=type(selector).weighs, who=who)
        chosen = Chosen(self._global(local), scores, weights)
        self._answered = context, chosen
        return chosen

    def _all(self, context: UpdateContext, number: int) -> Chosen:
        """Returns every row of the place once, in an order of their own."""
        order = RowOrder(self.size, *self._key, "whole", context.update, number)
        return Chosen(self._global(order.take(0, self.size)))

    def _local(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows - self._first if self._rows is None else np.searchsorted(self._rows, rows).astype(np.int64)

    def _global(self, local: NDArray[np.int64]) -> NDArray[np.int64]:
        return local + self._first if self._rows is None else self._rows[local]


def candidates_of(selectors: Sequence[PlacedSelector]) -> Candidates | None:
    """Returns the scores of all rows that selectors chose from last, of one or of one for each source; None without."""
    found = [given for given in (placed.take_candidates() for placed in selectors) if given is not None]
    if len(found) <= 1:
        return found[0] if found else None
    rows = np.concatenate([each.numbers() for each in found])
    return Candidates(rows, np.concatenate([each.scores for each in found]))


def joined(parts: list[Chosen]) -> Chosen:
    """Returns the parts as one; rows without a score or a weight have NaN, and 1."""
    rows = np.concatenate([part.rows for part in parts])
    scores = _filled([part.scores for part in parts], parts, np.nan)
    return Chosen(rows, scores, _filled([part.weights for part in parts], parts, 1.0))


def _filled(
    values: list[NDArray[np.float64] | None], parts: list[Chosen], missing: float
) -> NDArray[np.float64] | None:
    if all(value is None for value in values):
        return None
    pairs = zip(values, parts, strict=True)
    return np.concatenate([np.full(len(part.rows), missing) if value is None else value for value, part in pairs])
