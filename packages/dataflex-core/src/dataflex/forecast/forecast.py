"""What a run will take, before it starts: read from its configuration, its data files and the components' own word.

    spec -> rows and tokens (data_size), weights (model_size), steps (core.schedule)
         -> what each component declares for each update (deciding)
         -> FLOPs, and FLOPs that training would do in the same time (passes_price)

Nothing of the model is loaded and nothing is fetched. The same configuration and files give the same numbers on
machines of one kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import torch

from dataflex.config.known_keys import handed_on
from dataflex.config.spec import RunSpec
from dataflex.core.cost import Ahead, Amount, Cost, Work
from dataflex.core.errors import ConfigError
from dataflex.core.schedule import Schedule, Segment
from dataflex.discovery.component_classes import find
from dataflex.forecast.data_size import DataSize, Rows, data_size, keys_of, require_count
from dataflex.forecast.deciding import Asking, Decided, joined, row_shares
from dataflex.forecast.model_size import Known, ModelSize, model_size
from dataflex.forecast.passes_price import (
    ACCELERATED,
    CPU_SPEED,
    CPU_TOUCHED,
    GPU_SPEED,
    GPU_TOUCHED,
    Pass,
    Prices,
    Rates,
)
from dataflex.forecast.stage_passes import stage_passes
from dataflex.interfaces.selector import Selector

MOST = 2000
"""Updates that are looked at one by one; of later ones the mean of the second half of these is taken."""
_SOME = 1000.0  # rows that are put where the number is not known, to see whether it matters
UNKNOWN = ModelSize(body=1.0, head=0.0, trainable=0, trained=1.0, head_trained=False)
"""The model where there is none to look at: shares of a run hardly depend on it."""


@dataclass(frozen=True)
class Facts:
    """What was read for a forecast; other parameters of the same run need no second look.

    Attributes:
        data: The rows.
        model: The model that is trained.
        others: Model name or path -> size of other models.
        rates: The device.
        ranks: Processes.
        given_rows: Whether the user has said how many rows there are.
    """

    data: DataSize
    model: Known
    others: Mapping[str, ModelSize]
    rates: Rates
    ranks: int = 1
    given_rows: bool = False


@dataclass(frozen=True)
class PlannedSegment:
    """A stretch of training.

    Attributes:
        start: Optimizer steps done when it begins.
        steps: Its steps.
        rows: Rows trained on.
        tokens: Their tokens, without padding.
        update: The update that it begins with; None for warm-up.
        deciding: Kind of pass -> what the update costs.
        training: What its steps cost.
    """

    start: int
    steps: int
    rows: float
    tokens: float
    update: int | None
    deciding: Mapping[str, Pass]
    training: Pass

    @property
    def deciding_flops(self) -> float:
        """FLOPs that training would do in the time of the update."""
        return sum(each.equivalent for each in self.deciding.values())


@dataclass(frozen=True)
class Forecast:
    """What a run will take. FLOPs are those that training would do in the same time, over all ranks.

    Attributes:
        spec: The run.
        facts: What it was read from.
        schedule: Its steps.
        batch: Rows of a step over all ranks.
        segments: Its stretches, the first :data:`MOST` updates of them.
        shares: Source -> share of the trained rows that the run begins with.
        training_flops: Of all steps.
        deciding_flops: Of all updates, and of what components do at each step.
        passes: Kind of pass -> what all updates and steps come to.
        parts: Component -> FLOPs of all that it decides.
        unknown: Components that do not say what they cost.
        cost: Memory and disk of all components together, at most.
        notes: What components cannot tell in numbers.
    """

    spec: RunSpec
    facts: Facts
    schedule: Schedule
    batch: int
    segments: tuple[PlannedSegment, ...]
    shares: Mapping[str, float]
    training_flops: float
    deciding_flops: float
    passes: Mapping[str, Pass]
    parts: Mapping[str, float]
    unknown: tuple[str, ...]
    cost: Cost
    notes: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """The share of the run's compute that deciding takes."""
        whole = self.training_flops + self.deciding_flops
        return self.deciding_flops / whole if whole else 0.0

    @property
    def rows(self) -> float:
        """Rows trained on, counted as often as they come."""
        return float(self.schedule.total * self.batch)

    @property
    def tokens(self) -> float:
        """Tokens trained on, without padding."""
        return sum(self.rows * self.shares[s.name] * s.mean for s in self.facts.data.sources)

    def repeats(self, source: Rows) -> float | None:
        """Returns how often a row of a source is expected to come; None where it has an unknown number of rows."""
        return self.rows * self.shares[source.name] / source.count if source.count else None

    def updates_missed(self) -> float | None:
        """Returns how many updates a row is expected to be left out of; None where rows are not chosen anew.

        Rows are taken to be chosen evenly. A row that a strategy does not want may be left out of all.
        """
        known = self.facts.data.count
        chosen = [segment.rows for segment in self.segments if segment.update is not None]
        if self.spec.selector is None or not known or not chosen:
            return None
        mean = sum(max(0.0, 1 - rows / known) for rows in chosen) / len(chosen)
        return mean * self.schedule.updates

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Sets of rows that components look at and whose number is not known: what they cost is not in the numbers."""
        data = self.facts.data
        unknown = [part for part in (*data.sources, *data.evaluated) if part.count is None]
        return tuple(part.name for part in unknown if self._matters(part))

    def _matters(self, unknown: Rows) -> bool:
        """Returns whether deciding would cost more if a set of unknown size had rows."""

        def put(parts: tuple[Rows, ...]) -> tuple[Rows, ...]:
            return tuple(replace(part, count=_SOME) if part is unknown else part for part in parts)

        data = self.facts.data
        some = replace(data, sources=put(data.sources), evaluated=put(data.evaluated))
        return estimated(self.spec, replace(self.facts, data=some)).deciding_flops > self.deciding_flops

    @property
    def selection_bytes(self) -> float:
        """Disk of ``dataflex_selections``: 8 bytes a row; as much again each where there are scores and weights."""
        selector = self.spec.selector
        found = None if selector is None else find(selector.component.kind, selector.component.name)
        more = found.gives_scores + found.weighs if found is not None and issubclass(found, Selector) else 0
        return self.rows * 8.0 * (1 + more) if self.spec.arguments.dynamic else 0.0


def forecast(spec: RunSpec, *, rows: float | None = None, ranks: int = 1, speed: float | None = None) -> Forecast:
    """Returns what a checked run will take. Takes seconds; loads no weights and fetches nothing.

    Args:
        spec: What :func:`dataflex.config.check.check` returned.
        rows: Rows of the train dataset, where they cannot be told here.
        ranks: Processes that will train.
        speed: FLOPs that each trains at, a second; None for what is usual for this machine's kind.

    Raises:
        ConfigError: How long the run is depends on rows that cannot be counted here; or it is not dataflex that trains.
    """
    return estimated(spec, read_facts(spec, rows=rows, ranks=ranks, speed=speed))


def read_facts(spec: RunSpec, *, rows: float | None = None, ranks: int = 1, speed: float | None = None) -> Facts:
    """Returns what is read for :func:`forecast`, from files of this machine. See there."""
    if handed_on(spec.arguments.train_type):
        raise ConfigError(
            "USE_V1=1 leaves the run to LLaMA-Factory's next trainer, whose keys plan does not know -> unset it"
        )
    keys = spec.llamafactory
    model = model_size(str(keys.get("model_name_or_path")), keys)
    others: dict[str, ModelSize] = {}
    for part in spec.axes:
        for value in part.component.params.values():
            if isinstance(value, str) and "/" in value and value not in others:
                found = model_size(value, keys).size
                others |= {} if found is None else {value: found}
    return Facts(data_size(spec, rows), model, others, usual_rates(spec, speed), ranks, rows is not None)


def usual_rates(spec: RunSpec, speed: float | None = None) -> Rates:
    """Returns how fast training is taken to be: that of an accelerator unless the run or this machine has none."""
    accelerated = spec.llamafactory.get("use_cpu") is not True and torch.accelerator.is_available()
    if accelerated if speed is None else speed >= ACCELERATED:
        return Rates(speed or GPU_SPEED, GPU_TOUCHED, "an accelerator")
    threads = torch.get_num_threads()
    what = "1 CPU thread" if threads == 1 else f"{threads} CPU threads"
    return Rates(speed or CPU_SPEED * threads, CPU_TOUCHED, what)


def estimated(spec: RunSpec, facts: Facts) -> Forecast:
    """Returns the forecast of a run from what was read. Reads nothing."""
    batch, micro, device_batch = _batches(spec, facts.ranks)
    schedule = _schedule(spec, facts, batch)
    shares = row_shares(spec, facts.data)
    model = facts.model.size or UNKNOWN
    step, padded = _step(facts.data, shares, batch, device_batch)
    around = Ahead(
        step=step, micro_batches=micro, width=model.width, trainable=model.trainable, model_bytes=int(model.bytes)
    )
    recomputes = spec.llamafactory.get("disable_gradient_checkpointing") is not True
    stage = stage_passes(spec.llamafactory)
    prices = Prices(model, facts.rates, facts.others, recomputes=recomputes, ranks=facts.ranks, stage=stage)
    return _Sum(spec, facts, schedule, Asking(spec, facts.data, shares, schedule, around), prices, step, padded).done(
        batch, dict(zip([source.name for source in facts.data.sources], shares, strict=True))
    )


class _Sum:
    """Adds up a run."""

    def __init__(
        self,
        spec: RunSpec,
        facts: Facts,
        schedule: Schedule,
        asking: Asking,
        prices: Prices,
        step: Amount,
        padded: Amount,
    ) -> None:
        self._spec, self._facts, self._schedule, self._asking, self._prices = spec, facts, schedule, asking, prices
        self._step, self._training = step, prices.step(padded)
        self._parts: dict[str, float] = {}
        self._costs: dict[str, Cost] = {}
        self._unknown: dict[str, None] = {}

    def done(self, batch: int, shares: Mapping[str, float]) -> Forecast:
        schedule = self._schedule
        segments = [self._segment(segment) for segment in _looked_at(schedule)]
        updated = [segment for segment in segments if segment.update is not None]
        later = updated[len(updated) // 2 :] if schedule.updates > len(updated) else []
        factor = 1 + (schedule.updates - len(updated)) / len(later) if later else 1.0
        passes: dict[str, Pass] = {}
        for number, segment in enumerate(updated):
            times = factor if later and number >= len(updated) // 2 else 1.0
            for kind, each in segment.deciding.items():
                passes[kind] = passes.get(kind, Pass()) + _times(each, times)
        for place, work, steps in self._at_steps():
            priced = self._prices.of(work.times(steps))
            for kind, each in priced.items():
                passes[kind] = passes.get(kind, Pass()) + each
            self._parts[place] = self._parts.get(place, 0.0) + sum(each.equivalent for each in priced.values())
        if later:
            whole = sum(self._parts.values()) or 1.0
            scale = sum(each.equivalent for each in passes.values()) / whole
            self._parts = {place: flops * scale for place, flops in self._parts.items()}
        return Forecast(
            self._spec, self._facts, schedule, batch, tuple(segments), shares,
            self._training.equivalent * schedule.total, sum(each.equivalent for each in passes.values()), passes,
            self._parts, tuple(self._unknown), joined(list(self._costs.values())),
            joined(list(self._costs.values())).notes,
        )  # fmt: skip

    def _segment(self, segment: Segment) -> PlannedSegment:
        work = Work()
        if segment.update is not None:
            for decided in self._asking.at(segment):
                self._note(decided)
                if decided.cost is not None:
                    before, work = work, work + decided.cost.update
                    own = _flops(self._prices.of(work)) - _flops(self._prices.of(before))
                    self._parts[decided.place] = self._parts.get(decided.place, 0.0) + own
        rows = self._step.times(segment.steps)
        return PlannedSegment(
            segment.start, segment.steps, rows.rows, rows.tokens, segment.update, self._prices.of(work),
            _times(self._training, segment.steps),
        )  # fmt: skip

    def _note(self, decided: Decided) -> None:
        """Keeps the largest memory and disk of a component, and which do not say what they cost."""
        if decided.cost is None:
            self._unknown[f"{decided.part.component.in_words}"] = None
            return
        known, new = self._costs.get(decided.place, Cost()), decided.cost
        self._costs[decided.place] = replace(
            new,
            device_bytes=max(known.device_bytes, new.device_bytes),
            host_bytes=max(known.host_bytes, new.host_bytes),
            state_bytes=max(known.state_bytes, new.state_bytes),
            cache_bytes=max(known.cache_bytes, new.cache_bytes),
        )

    def _at_steps(self) -> Iterator[tuple[str, Work, int]]:
        """Yields what components do at each step, and at how many."""
        for place, cost in self._costs.items():
            if cost.step != Work():
                yield place, cost.step, self._schedule.total
        weigher = self._asking.weigher()
        if weigher is not None:
            self._note(weigher)
            if weigher.cost is not None:
                yield weigher.place, weigher.cost.step, max(0, self._schedule.total - weigher.part.start)


def _flops(passes: Mapping[str, Pass]) -> float:
    return sum(each.equivalent for each in passes.values())


def _times(each: Pass, factor: float) -> Pass:
    return Pass(each.rows * factor, each.tokens * factor, each.flops * factor, each.equivalent * factor)


def _looked_at(schedule: Schedule) -> Iterator[Segment]:
    """Yields the segments from the first on, up to :data:`MOST` updates."""

    def every() -> Iterator[Segment]:
        step = 0
        while step < schedule.total:
            segment = schedule.segment_at(step)
            yield segment
            step = segment.stop

    return islice(every(), MOST + 1)


def _batches(spec: RunSpec, ranks: int) -> tuple[int, int, int]:
    """Returns the rows of a step over all ranks, its micro-batches, and the rows that a device takes at once."""
    device_batch = keys_of(spec, "per_device_train_batch_size", 8)
    micro = keys_of(spec, "gradient_accumulation_steps", 1)
    return device_batch * micro * ranks, micro, device_batch


def _schedule(spec: RunSpec, facts: Facts, batch: int) -> Schedule:
    """Returns the steps of the run; those of its epochs need the rows."""
    steps = spec.steps(keys_of(spec, "max_steps", 0))
    if steps.total is None:
        rows = require_count(facts.data, "how many steps num_train_epochs makes depends on the rows")
        dropped = spec.llamafactory.get("dataloader_drop_last") is True and not spec.plans
        return steps.plan(max(1, int(rows // batch if dropped else -(-rows // batch))))
    known = facts.data.count
    return steps.plan(max(1, int(-(-known // batch))) if known else steps.total)


def _step(data: DataSize, shares: list[float], batch: int, device_batch: int) -> tuple[Amount, Amount]:
    """Returns the rows of a step, without padding and with it."""
    plain, padded = Amount(), 0.0
    for source, share in zip(data.sources, shares, strict=True):
        plain += source.amount(batch * share)
        padded += batch * share * source.padded(device_batch)
    return plain, replace(plain, tokens=max(plain.tokens, padded))
