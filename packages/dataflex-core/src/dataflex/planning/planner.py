"""Which rows a segment trains on, and in which order: one pipeline, whose order is fixed by what the words mean.

    pool  -> selectors that filter (each keeps a share of what it is shown)
          -> mixer (how many rows of each source)
          -> selector inside of each source, or rows without replacement where there is none
          -> order (in which order they are trained on)

Each stage is optional. At an update those components decide that take part in it; what the others decided stands.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.config.checks.enough_rows import rows_kept
from dataflex.config.spec import Part
from dataflex.core.context import UpdateContext
from dataflex.core.decision_hash import decision_hash
from dataflex.core.errors import ComponentError, blaming
from dataflex.core.schedule import Segment, takes_part
from dataflex.planning.answers import checked_proportions
from dataflex.planning.decisions import Decision, Plan
from dataflex.planning.ordering import Scores, arranged_stretch
from dataflex.planning.selecting import Chosen, candidates_of, joined
from dataflex.planning.stages import Stages
from dataflex.run.score_summary import along, stretches
from dataflex.utils.progress import Progress

Before = Callable[[str, str], None]
"""Told what a component is about to do, and its name."""

Agree = Callable[[str, str], None]
"""``agree(digest, who)`` refuses what ranks have decided differently. Collective."""


class Planner:
    """Plans one segment.

    Args:
        stages: The components in their places.
        segment: The stretch to plan.
        context: The state of the run.
        model: The model being trained.
        before: Told of each component before it decides at an update.
        agree: Compares a decision over the ranks, before the next component goes by it: where it asks for scores, ranks
            that want those of other rows would wait for each other.
    """

    def __init__(
        self, stages: Stages, segment: Segment, context: UpdateContext, model: Any, before: Before, agree: Agree
    ) -> None:
        self._stages, self._segment, self._context, self._model = stages, segment, context, model
        self._before, self._agree = before, agree
        self._decisions: list[Decision] = []
        self._last = self._named("the plan")  # who was asked last
        self._when_filled: Callable[[], None] = lambda: None

    def plan(self, count: int, done: int) -> Plan:
        """Returns the rows of the segment. Called on every rank with the model undisturbed.

        Args:
            count: Rows that it needs.
            done: Rows of the same stretch of the schedule that were trained on before.

        Raises:
            ComponentError: A component gave a bad answer, or ranks disagree.
        """
        self._filter()
        self._mix(count)
        chosen = self._fill(count, done)
        self._when_filled()
        plan = Plan(self._ordered(chosen), self._decisions)
        self._agree(plan.chosen.digest, self._last)
        return plan

    def _filter(self) -> None:
        pool = self._stages.pool
        for number, (part, placed) in enumerate(zip(self._stages.spec.filters, self._stages.filters, strict=True)):
            if not self._takes_part(part):
                continue
            started = time.perf_counter()
            with self._asking("filter", "filter", part) as who:
                placed.narrow(pool.before(number), pool.version(number))
                size = placed.size
                kept = placed.choose(self._model, self._kept(part, size), self._context, who)
                pool.keep(number, kept.rows, who)
            rows = np.sort(kept.rows)
            self._agree(decision_hash(rows), who)
            self._decided(
                "filter", part, placed.component, started, len(rows), decided=rows, scores=kept.scores, placed=[placed],
                details={"keep": part.keep, "of": size}, news=f"kept {len(rows)} of {size} rows",
                candidates=candidates_of([placed]),
            )  # fmt: skip

    @staticmethod
    def _kept(part: Part, size: int) -> int:
        assert part.keep is not None
        return rows_kept(size, part.keep)

    def _mix(self, count: int) -> None:
        part, mixture = self._stages.spec.mixer, self._stages.mixture
        if part is None or mixture is None or not self._takes_part(part):
            return
        started, mixer = time.perf_counter(), self._stages.mixer
        with self._asking("mix", "mixer", part) as who:
            answer = mixer.mix(model=self._model, step_id=self._context.step, context=self._context)
            mixture.set_proportions(checked_proportions(answer, names=mixture.names, who=who))
            more = mixer.details()
        shares = mixture.by_name()
        self._decided("mix", part, mixer, started, count, news=f"set {mixture.in_words()}")
        place = len(self._decisions) - 1

        def with_seen() -> None:  # the rows of this segment among them
            weighs = {"weighs_losses": True} if mixer.weighs else {}
            details = {"proportions": shares, **mixture.weights_by_name(), **mixture.seen(), **weighs, **more}
            self._decisions[place] = replace(self._decisions[place], details=details)

        self._when_filled = with_seen

    def _fill(self, count: int, done: int) -> Chosen:
        stages = self._stages
        if stages.mixture is None:
            parts = self._drawn([count], done)
            return parts[0]
        if not (stages.selectors or stages.passes or stages.arranged):
            return Chosen(stages.mixture.plan(count))
        division = stages.mixture.divide(count)
        self._agree(decision_hash(division.counts), self._last)
        return joined(self._drawn(division.counts.tolist(), None)).at(division.order)

    def _drawn(self, counts_K: list[int], done: int | None) -> list[Chosen]:
        """Returns the rows of each source: those that the selector chose, or the next ones of the pass."""
        stages, part = self._stages, self._stages.spec.selector
        if stages.arranged:
            return self._of_arranged_passes(counts_K)
        if part is None:
            return [Chosen(self._next_rows(k, count)) for k, count in enumerate(counts_K)]
        chooses, warms = self._takes_part(part), self._segment.update is None
        started = time.perf_counter()
        if not chooses and not warms:
            return [
                placed.stand(count) if placed.has_decided else Chosen(self._next_rows(k, count))
                for k, (placed, count) in enumerate(zip(stages.selectors, counts_K, strict=True))
            ]
        found = []
        with self._asking("select", "selector", part) as who:
            for placed, count in zip(stages.selectors, counts_K, strict=True):
                if warms:
                    found.append(placed.warm_up(count, done, who))
                    continue
                placed.narrow(stages.pool.mask, stages.pool.version())
                whole = stages.mixture is not None or bool(stages.filters)
                found.append(placed.choose(self._model, count, self._context, who, whole=whole) if count else _NOTHING)
            said = self._said() if chooses else {}
        if chooses:
            chosen = found[0] if len(found) == 1 else joined(found)
            self._agree(chosen.digest, who)
            size = sum(placed.size for placed in stages.selectors)
            self._decided(
                "select", part, [placed.component for placed in stages.selectors], started, len(chosen.rows),
                decided=chosen.rows, scores=chosen.scores, placed=stages.selectors, details=said,
                news=f"chose {len(chosen.rows)} of {size} rows",
                candidates=candidates_of(stages.selectors),
            )  # fmt: skip
        return found

    def _said(self) -> Mapping[str, Any]:
        """Returns what the selectors say of their choice; those of a mixture by their sources."""
        said = [placed.details(self._context.update) for placed in self._stages.selectors]
        if self._stages.mixture is None:
            return said[0]
        named = list(zip(self._stages.mixture.names, said, strict=True))
        keys = dict.fromkeys(key for own in said for key in own)
        return {key: {name: own[key] for name, own in named if key in own} for key in keys}

    def _of_arranged_passes(self, counts_K: list[int]) -> list[Chosen]:
        stages, part = self._stages, self._stages.spec.order
        assert part is not None
        decides = self._takes_part(part)
        started, active = time.perf_counter(), decides or not stages.updates
        with self._asking("order", "order", part, decides) as who:
            found = [
                Chosen(
                    arranged.take(
                        count, self._pool_of(k, count)[1], self._context, self._scores_of(k), who, decides=active
                    )
                )
                for k, (arranged, count) in enumerate(zip(stages.arranged, counts_K, strict=True))
            ]
        self._agree(joined(found).digest, who)  # also where it was asked because a pass began
        if decides:
            rows, made = sum(counts_K), [arranged.along for arranged in stages.arranged if arranged.along is not None]
            details = {"along": along(np.sum(made, axis=0))} if made else {}
            self._decided(
                "order", part, stages.order, started, rows, details=details, news=f"put {rows} rows of its pass next"
            )
        return found

    def _next_rows(self, k: int, count: int) -> NDArray[np.int64]:
        """Returns the next rows of a source, each row of the pool once before any comes again."""
        first, own_N = self._pool_of(k, count)
        return self._stages.passes[k].take(count, own_N) + first

    def _pool_of(self, k: int, count: int) -> tuple[int, NDArray[np.bool_] | None]:
        """Returns the first row of a source, and which of its rows are in the pool: (rows,), None for all."""
        name, first, size = self._stages.places[k]
        if self._stages.pool.mask is None:
            return first, None
        own_N = self._stages.pool.mask[first : first + size]
        if count and not own_N.any():
            raise ComponentError(
                f"the mixture wants {count} rows of {name}, of which the filters have kept none at step "
                f"{self._segment.start} -> raise keep:, or leave the filter out"
            )
        return first, own_N

    def _ordered(self, chosen: Chosen) -> Chosen:
        part, order = self._stages.spec.order, self._stages.order
        if part is None or self._stages.arranged or not self._takes_part(part):
            return chosen
        started, rows = time.perf_counter(), len(chosen.rows)
        with self._asking("order", "order", part) as who:
            scores = self._scores_by(part, chosen, who)
            places = arranged_stretch(order, scores, self._context, who)
            details = {"along": along(stretches(scores, places))} if order.needs_scores else {}
        self._decided("order", part, order, started, rows, details=details, news=f"arranged {rows} rows")
        return chosen.at(places)

    def _scores_by(self, part: Part, chosen: Chosen, who: str) -> NDArray[np.float64]:
        """Returns the scores of chosen rows that the order goes by."""
        if part.by != "selector":
            return self._scores(chosen.rows)
        if chosen.scores is None:
            raise ComponentError(
                f"{who} arranges by the scores of the selector, and this gave none -> by: loss, or a selector that "
                "gives rows scores"
            )
        return chosen.scores

    def _scores_of(self, k: int) -> Scores:
        """Returns what gives the scores of rows of a source; None for all of them."""
        _, first, size = self._stages.places[k]

        def scores(rows: NDArray[np.int64] | None) -> NDArray[np.float64]:
            if rows is None and size < len(self._stages):
                rows = np.arange(first, first + size)
            return self._scores(rows)

        return scores

    def _scores(self, rows: NDArray[np.int64] | None) -> NDArray[np.float64]:
        """Returns the scores of rows that the order goes by, None for all; zeros for one that needs none."""
        part = self._stages.spec.order
        assert part is not None
        count = len(self._stages) if rows is None else len(rows)
        if not self._stages.order.needs_scores or not count:
            return np.zeros(count)
        assert self._context.scores is not None, "the trainer gives them"
        assert part.by is not None
        return self._context.scores.of(part.by, rows)

    def _takes_part(self, part: Part) -> bool:
        update = self._segment.update
        return update is not None and takes_part(update, self._segment.start, part.every, part.start)

    def _named(self, what: str) -> str:
        when = "warm-up" if self._segment.update is None else f"update {self._segment.update}"
        return f"{what} at {when} (step {self._segment.start})"

    @contextmanager
    def _asking(self, verb: str, what: str, part: Part, decides: bool = True) -> Iterator[str]:
        """Tells the hooks that a component decides, and names it in errors and in signs of life."""
        name, update = part.component.name, self._segment.update
        if update is not None and decides:
            self._before(verb, name)
        when = "the warm-up" if update is None else f"update {update}"
        who = self._last = self._named(f"{what} '{name}'")
        with blaming(who), Progress(f"{name}: {when} at step {self._segment.start}", bar=None):
            yield who

    def _decided(self, verb: str, part: Part, component: Any, started: float, rows: int, **more: Any) -> None:
        components = component if isinstance(component, list) else [component]
        left_out = sum(each.left_out for each in components)
        seconds = time.perf_counter() - started
        self._decisions.append(Decision(verb, part.component.name, rows, seconds, left_out=left_out, **more))


_NOTHING = Chosen(np.empty(0, dtype=np.int64))
