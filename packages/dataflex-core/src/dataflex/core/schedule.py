"""When updates happen: pure arithmetic over global optimizer steps, which the rest of dataflex asks.

    warm-up            update 0           update 1                    (cycle ends; may repeat)
    |---warmup_step---|---update_step----|---update_step----| ...

A segment is a stretch between two of these marks. Its rows are planned when its first batch is asked for, that is,
after the last optimizer step before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dataflex.core.errors import ConfigError


@dataclass(frozen=True)
class Segment:
    """A stretch of training whose rows are planned at once.

    Attributes:
        start: Global steps done when it begins.
        stop: Global steps done when it ends.
        update: Number of the update it begins with, from 0; None for warm-up.
    """

    start: int
    stop: int
    update: int | None

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return self.stop - self.start


@dataclass(frozen=True)
class Schedule:
    """The whole run, cut into segments.

    Attributes:
        total: Optimizer steps of the run.
        warmup: Steps before the first update of a cycle.
        interval: Steps between two updates; ignored when there are none.
        updates_per_cycle: Updates of a cycle; None means until ``total``.
        cycle: Steps after which the schedule starts over; ``total`` where it does not repeat.
        epoch_steps: Steps that count as one epoch, for ``state.epoch`` and the strategies that run once an epoch.
        longest: Most steps of a segment that begins with no update; longer stretches are planned piece by piece. None
            for no such limit.
    """

    total: int
    warmup: int
    interval: int
    updates_per_cycle: int | None
    cycle: int
    epoch_steps: float
    longest: int | None = None

    def segment_at(self, step: int) -> Segment:
        """Returns the segment that holds the step after ``step`` steps are done; 0 <= step < total."""
        if not 0 <= step < self.total:
            raise ValueError(f"step {step} is outside of a run of {self.total} steps")
        cycle, offset = divmod(step, self.cycle)
        base, end = cycle * self.cycle, min((cycle + 1) * self.cycle, self.total)
        if self.updates_per_cycle == 0:
            return self._piece(Segment(base, end, None), step)
        if offset < self.warmup:
            return self._piece(Segment(base, min(base + self.warmup, end), None), step)
        number = (offset - self.warmup) // self.interval
        last = self.updates_per_cycle is not None and number >= self.updates_per_cycle - 1
        if last:
            number = self.updates_per_cycle - 1  # type: ignore[operator]  # the last one runs to the end of its cycle
        start = base + self.warmup + number * self.interval
        stop = end if last else min(start + self.interval, end)
        return Segment(start, stop, cycle * (self.updates_per_cycle or 0) + number)

    def _piece(self, whole: Segment, step: int) -> Segment:
        """Returns the piece of a stretch without updates that holds the step."""
        if self.longest is None or whole.steps <= self.longest:
            return whole
        start = step - (step - whole.start) % self.longest
        return Segment(start, min(start + self.longest, whole.stop), None)

    @property
    def updates(self) -> int:
        """Number of updates of the run."""
        last = self.segment_at(self.total - 1)
        if last.update is not None:
            return last.update + 1
        return (self.total - 1) // self.cycle * (self.updates_per_cycle or 0)

    @property
    def largest_segment(self) -> int:
        """Steps of the longest segment."""
        marks = {0, self.warmup, self.cycle - 1, self.total - 1}  # later cycles are like the first one, or shorter
        return max(self.segment_at(mark).steps for mark in marks if mark < self.total)

    def epoch_at(self, step: int) -> float:
        """Returns how many epochs ``step`` steps are."""
        return step / self.epoch_steps


def plan_schedule(
    *,
    warmup_step: int,
    update_step: int,
    update_times: int,
    train_step: int,
    epochs: float,
    repeat: bool,
    steps_per_pass: int,
) -> Schedule:
    """Returns the schedule that the configuration describes.

    Args:
        warmup_step: Steps before the first update.
        update_step: Steps between updates.
        update_times: Number of updates, 0 for none, -1 for as many as fit.
        train_step: Total steps; 0 leaves it to the formula ``warmup_step + update_step * update_times``, or to the
            epochs where ``update_times`` is -1. Where it is larger than the formula, the last segment runs to the end.
        epochs: ``num_train_epochs``.
        repeat: Whether the epochs repeat the formula's cycle (dynamic_select with num_train_epochs given).
        steps_per_pass: Steps in which every row would be seen once.

    Raises:
        ConfigError: Updates are wanted, but no steps between them.
    """
    if update_times != 0 and update_step < 1:
        raise ConfigError(
            f"update_step: {update_step} with update_times: {update_times}; expected 1 or more steps between updates "
            "-> set update_step, or update_times: 0"
        )
    if update_times < 0 or warmup_step + update_step * update_times == 0:
        total = train_step or max(1, math.ceil(epochs * steps_per_pass))
        updates = None if update_times < 0 else 0
        return Schedule(total, warmup_step, update_step, updates, total, steps_per_pass)
    cycle = warmup_step + update_step * update_times
    if train_step:
        return Schedule(train_step, warmup_step, update_step, update_times, train_step, steps_per_pass)
    total = max(1, math.ceil(epochs * cycle)) if repeat else cycle
    return Schedule(total, warmup_step, update_step, update_times, cycle, cycle if repeat else steps_per_pass)
