"""What is asked of each component at each update: the same rows that the planner asks for, in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from dataflex.config.checks.enough_rows import rows_kept
from dataflex.config.mixture_sources import shares_in_order
from dataflex.config.spec import Part, RunSpec, changes, places
from dataflex.core.component import Component
from dataflex.core.cost import NOTHING, Ahead, Amount, Cost, Work
from dataflex.core.errors import blaming
from dataflex.core.schedule import Schedule, Segment, takes_part
from dataflex.core.score_names import LOSS, SEEN, ScoreName
from dataflex.discovery.component_classes import find
from dataflex.discovery.construct import constructor_parameters
from dataflex.forecast.data_size import DataSize, together
from dataflex.interfaces.selector import Selector


@dataclass(frozen=True)
class Decided:
    """What one component does at one update.

    Attributes:
        place: Its key: ``selector``, ``selector[0]``, ``mixer``, ...
        part: The component.
        cost: What it costs; None where it is not known.
    """

    place: str
    part: Part
    cost: Cost | None


class Asking:
    """Asks the components of a run what they cost.

    Args:
        spec: The run.
        data: Its rows.
        shares: Share of the rows of each source.
        schedule: Its steps.
        around: What is known of the run besides: the step, the model.
    """

    def __init__(
        self, spec: RunSpec, data: DataSize, shares: Sequence[float], schedule: Schedule, around: Ahead
    ) -> None:
        axes = spec.axes
        self._spec, self._data, self._shares, self._schedule = replace(spec, parts=axes), data, shares, schedule
        self._around = replace(
            around, rows=together(data.sources), target=together(data.evaluated), sets=data.sets,
            held_out=together(data.held_out), sources=len(data.sources), updates=max(1, schedule.updates),
        )  # fmt: skip
        self._places = dict(zip(map(id, axes), places(spec), strict=True))

    def at(self, segment: Segment) -> Iterator[Decided]:
        """Yields what each component that takes part does at the update that a segment begins with."""
        assert segment.update is not None
        spec, step = self._spec, self._around.step
        asked, left = step.times(segment.steps), 1.0
        for part in spec.filters:
            rows = self._around.rows.times(left)
            kept = rows_kept(max(1, round(rows.rows)), part.keep or 1.0)
            left *= kept / rows.rows if rows.rows else 1.0
            if self._takes_part(part, segment):
                yield self._asked(part, segment, rows=rows, asked=rows.of(kept))
        if spec.mixer is not None and self._takes_part(spec.mixer, segment):
            yield self._asked(spec.mixer, segment, asked=asked)
        if spec.selector is not None and self._takes_part(spec.selector, segment):
            yield self._chosen(spec.selector, segment, asked, left)
        if spec.order is not None and self._takes_part(spec.order, segment):
            yield self._arranged(spec.order, segment, asked)

    def weigher(self) -> Decided | None:
        """Returns what the weighter does at each step; None where there is none."""
        part = self._spec.weighter
        if part is None:
            return None
        weighed = max(0, self._schedule.total - part.start)
        return Decided(self._places[id(part)], part, self._cost(part, replace(self._around, steps=max(1, weighed))))

    def _takes_part(self, part: Part, segment: Segment) -> bool:
        assert segment.update is not None
        return takes_part(segment.update, segment.start, part.every, part.start)

    def _asked(self, part: Part, segment: Segment, **more: Any) -> Decided:
        return Decided(self._places[id(part)], part, self._cost(part, self._ahead(part, segment, **more)))

    def _ahead(self, part: Part, segment: Segment, **more: Any) -> Ahead:
        begins = self._schedule.first_update(part.every, part.start)
        first = 0 if begins is None or begins.update is None else begins.update
        return replace(
            self._around, update=segment.update or 0, first=first, every=part.every, steps=segment.steps, **more
        )

    def _chosen(self, part: Part, segment: Segment, asked: Amount, left: float) -> Decided:
        """Returns what the selector costs: of a mixture, one for each source, asked for what whole passes leave."""
        if not self._spec.mixes:
            return self._asked(part, segment, rows=self._around.rows.times(left), asked=asked)
        repeats, costs = self._repeats(part), []
        for source, share in zip(self._data.sources, self._shares, strict=True):
            rows = source.amount().times(left)
            wanted = round(asked.rows * share)
            whole = int(wanted // rows.rows) if rows.rows and not repeats else 0
            wanted -= whole * int(rows.rows)
            if wanted or not whole:
                mine = rows.of(wanted) if rows.rows else NOTHING
                cost = self._cost(part, self._ahead(part, segment, rows=rows, asked=mine))
                if cost is None:
                    return Decided(self._places[id(part)], part, None)
                costs.append(cost)
        return Decided(self._places[id(part)], part, joined(costs))

    def _arranged(self, part: Part, segment: Segment, asked: Amount) -> Decided:
        """Returns what the order costs, with the scores that it is given."""
        found = self._asked(part, segment, asked=asked)
        name = ScoreName.of(part.by or "")
        if found.cost is None or name.kind not in (LOSS, SEEN) or (part.over == "run" and not changes(part)):
            return found
        ahead = self._ahead(part, segment, asked=asked)
        rows = asked
        if part.over == "run" and ahead.rows.rows:  # what is left of the pass, or a whole one where it ends here
            gone = segment.start * ahead.step.rows % ahead.rows.rows
            rows = ahead.rows if gone + asked.rows > ahead.rows.rows else ahead.rows.of(ahead.rows.rows - gone)
        if name.kind == SEEN:
            share = ahead.unseen(int(name.argument)).rows / ahead.rows.rows if name.argument and ahead.rows.rows else 0
            rows = rows.times(share)
        return replace(found, cost=replace(found.cost, update=found.cost.update + Work(losses=rows)))

    def _cost(self, part: Part, ahead: Ahead) -> Cost | None:
        found, params = self._classes[id(part)]
        if not issubclass(found, Component):  # a weighter may be any class with two methods
            return None
        with blaming(part.component.in_words):
            return found.cost(params, ahead)

    def _repeats(self, part: Part) -> bool:
        found, params = self._classes[id(part)]
        declared = issubclass(found, Selector) and found.replacement
        return bool(params.get("replacement", declared))

    @cached_property
    def _classes(self) -> Mapping[int, tuple[type, Mapping[str, Any]]]:
        """Part -> its class, and its parameters with the defaults of those that nobody gave."""
        found = {}
        for part in self._spec.axes:
            cls = find(part.component.kind, part.component.name)
            parameters, _ = constructor_parameters(cls)
            defaults = {n: None if p.default is p.empty else p.default for n, p in parameters.items()}
            found[id(part)] = (cls, {**defaults, **part.component.params})
        return found


def joined(costs: Sequence[Cost]) -> Cost:
    """Returns what components of one run cost together, each on rows of its own."""
    whole = Cost()
    for cost in costs:
        losses = whole.update.losses + cost.update.losses
        whole = Cost(
            replace(whole.update + cost.update, losses=losses),
            whole.step + cost.step,
            whole.device_bytes + cost.device_bytes,
            whole.host_bytes + cost.host_bytes,
            whole.state_bytes + cost.state_bytes,
            whole.cache_bytes + cost.cache_bytes,
            tuple(dict.fromkeys([*whole.notes, *cost.notes])),
        )
    return whole


def row_shares(spec: RunSpec, data: DataSize) -> list[float]:
    """Returns the share of the trained rows that each source begins with."""
    sources, keys = data.sources, spec.arguments
    counts = np.array([source.count or 0.0 for source in sources])
    even = np.full(len(sources), 1 / len(sources))
    sizes = counts / counts.sum() if counts.all() else even
    if not spec.mixes:
        return [float(share) for share in sizes]
    if keys.mixture_by is not None:  # the sources are known once the rows are read
        return [float(share) for share in sizes]
    given = shares_in_order(keys.init_mixture_proportions, [source.name for source in sources])
    if keys.mixture_sample_rule == "uniform":
        shares = even
    elif keys.starts_from_sizes or given is None:
        return [float(share) for share in sizes]
    else:
        shares = np.array(given, dtype=np.float64) / math.fsum(given)
    if keys.mixture_unit == "tokens":
        means = np.array([max(1.0, source.mean) for source in sources])
        shares = shares / means / (shares / means).sum()
    return [float(share) for share in shares]
