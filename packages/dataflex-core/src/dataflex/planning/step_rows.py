"""How many rows of a plan optimizer steps take: a batch each, or prompts where one generation serves several steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class StepRows:
    """Rows by optimizer steps.

    Attributes:
        rows: Rows that are taken at once, over all ranks.
        every: Micro-batches of a rank after which the next ones are taken.
        accumulation: Micro-batches of an optimizer step.
    """

    rows: int
    every: int = 1
    accumulation: int = 1

    def of(self, steps: int, served: int = 0) -> int:
        """Returns the rows of so many steps; those that are taken for a part of them count whole.

        Args:
            steps: Optimizer steps.
            served: Micro-batches that the first of these rows have served before.
        """
        return -(-(steps * self.accumulation + served) // self.every) * self.rows

    def done(self, steps: int, served: int = 0) -> tuple[int, int]:
        """Returns which rows are used up after so many steps, and the micro-batches that the present ones have served.

        Args:
            steps: Optimizer steps from where rows were taken first.
            served: Micro-batches that the first of these rows had served by then.
        """
        times, served = divmod(steps * self.accumulation + served, self.every)
        return times * self.rows, served

    def served(self, step: int) -> int:
        """Returns the micro-batches that rows have served which are trained on when so many steps are done; 0 for none.

        Args:
            step: Global optimizer steps done: rows are taken after multiples of :attr:`every`, wherever a run ended.
        """
        return step * self.accumulation % self.every

    @property
    def unit(self) -> int:
        """The fewest steps after which the next rows are taken as a step begins."""
        return self.every // math.gcd(self.every, self.accumulation)

    @property
    def per_step(self) -> Fraction:
        """Rows of a step, on average."""
        return Fraction(self.rows * self.accumulation, self.every)

    @property
    def shown(self) -> int | float:
        """The same as a number for the record."""
        return int(self.per_step) if self.per_step.denominator == 1 else float(self.per_step)
