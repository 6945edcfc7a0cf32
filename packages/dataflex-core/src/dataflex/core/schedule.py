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


def takes_part(update: int, step: int, every: int, start: int) -> bool:
    """Returns whether an axis decides at an update; where it does not, what it decided before stands.

    Args:
        update: Number of the update, from 0.
        step: Global steps done when it happens.
        every: The axis takes part in each update whose number is a multiple of this.
        start: The first global step at which it takes part.
    """
    return update % every == 0 and step >= start


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

    def first_update(self, every: int = 1, start: int = 0) -> Segment | None:
        """Returns the segment of the first update that an axis takes part in (:func:`takes_part`); None for none."""
        if self.updates_per_cycle == 0 or self.updates == 0:
            return None
        per_cycle = self.updates_per_cycle or self.updates
        for cycle in range(min(start, self.total - 1) // self.cycle, -(-self.total // self.cycle)):
            base = cycle * self.cycle + self.warmup
            fewest = max(0, -(-(start - base) // self.interval))  # updates of this cycle before the step
            number = -(-(cycle * per_cycle + fewest) // every) * every - cycle * per_cycle
            if number < per_cycle and base + number * self.interval < min((cycle + 1) * self.cycle, self.total):
                return self.segment_at(base + number * self.interval)
        return None

    @property
    def longest_segment(self) -> Segment:
        """The longest segment; of several, one with an update, and of these the first."""
        marks = sorted({0, self.warmup, self.cycle - 1, self.total - 1})  # later cycles are like the first, or shorter
        found = [self.segment_at(mark) for mark in marks if mark < self.total]
        return max(found, key=lambda segment: (segment.steps, segment.update is not None))

    @property
    def longest_update(self) -> int:
        """Steps of the longest segment that begins with an update; 0 where there is none."""
        marks = {self.warmup, self.cycle - 1, self.total - 1}
        found = [self.segment_at(mark) for mark in marks if mark < self.total]
        return max((segment.steps for segment in found if segment.update is not None), default=0)

    def epoch_at(self, step: int) -> float:
        """Returns how many epochs ``step`` steps are."""
        return step / self.epoch_steps


@dataclass(frozen=True)
class Steps:
    """What a configuration says about when a run updates and when it ends. The one place that counts its steps.

    Attributes:
        warmup_step: Steps before the first update.
        update_step: Steps between updates.
        update_times: Number of updates, 0 for none, -1 for as many as fit.
        train_step: Total steps; 0 leaves it to the formula, or to the epochs where the formula gives none. Where it is
            larger than the formula, the last segment runs to the end.
        epochs: ``num_train_epochs``.
        repeat: Whether the epochs repeat the formula's cycle (dynamic_select with num_train_epochs given).
        decides: Whether there is anything to update: not with a static mixture, nor with weights that follow every
            batch. The total is counted in the same way for all.
    """

    warmup_step: int
    update_step: int
    update_times: int
    train_step: int
    epochs: float
    repeat: bool = False
    decides: bool = True

    @property
    def formula(self) -> int:
        """``warmup_step + update_step * update_times``; 0 where ``update_times`` is -1, as there is no such number."""
        return self.warmup_step + self.update_step * self.update_times if self.update_times >= 0 else 0

    @property
    def total(self) -> int | None:
        """Optimizer steps of the run; None where they are ``epochs`` passes over the rows."""
        if self.train_step or not self.formula:
            return self.train_step or None
        return max(1, math.ceil(self.epochs * self.formula)) if self.repeat else self.formula

    @property
    def repeats(self) -> bool:
        """Whether the run is the formula's cycle ``epochs`` times over."""
        return self.repeat and not self.train_step and self.formula > 0

    @property
    def by_epochs(self) -> bool:
        """Whether the number of steps depends on ``epochs``."""
        return not self.train_step and (self.repeat or not self.formula)

    def total_over(self, steps_per_pass: int) -> int:
        """Returns the optimizer steps of the run.

        Args:
            steps_per_pass: Steps in which every row would be seen once.
        """
        return self.total or max(1, math.ceil(self.epochs * steps_per_pass))

    def plan(self, steps_per_pass: int) -> Schedule:
        """Returns the whole run, cut into segments.

        Args:
            steps_per_pass: Steps in which every row would be seen once.

        Raises:
            ConfigError: Updates are wanted, but no steps between them.
        """
        total = self.total_over(steps_per_pass)
        if not self.decides:
            return Schedule(total, 0, 0, 0, total, steps_per_pass)
        if self.update_times != 0 and self.update_step < 1:
            raise ConfigError(
                f"update_step: {self.update_step} with update_times: {self.update_times}; expected 1 or more steps "
                "between updates -> set update_step, or update_times: 0"
            )
        updates = None if self.update_times < 0 else self.update_times
        cycle = self.formula if self.repeats else total
        epoch = cycle if self.repeats else steps_per_pass
        return Schedule(total, self.warmup_step, self.update_step, updates, cycle, epoch)
