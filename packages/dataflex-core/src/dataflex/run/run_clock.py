"""What the time of a run is spent on: training, deciding, saving and evaluating."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

TRAINING, DECIDING, SAVING, EVALUATING = KINDS = ("training", "deciding", "saving", "evaluating")


class RunClock:
    """Seconds by what they were spent on; what is nested in another thing counts as the inner one alone.

    Training is what is left of the time between :meth:`begin` and :meth:`stop`. Afterwards only what is spent inside of
    :meth:`spending` counts, as an evaluation of the trained model.
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._inside: list[str] = []
        self._mark = 0.0
        self._runs = False

    def begin(self, before: Mapping[str, Any]) -> None:
        """Training begins.

        Args:
            before: The seconds of earlier starts of the same run, by kind; those that are missing are 0.
        """
        known = {kind: seconds for kind, seconds in before.items() if isinstance(seconds, int | float)}
        self._seconds = {kind: float(known.get(kind, 0.0)) for kind in KINDS}
        self._runs, self._mark = True, time.perf_counter()

    def stop(self) -> None:
        """Training has ended."""
        self._settle()
        self._runs = False

    @contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Inside of it, time is spent on ``kind``."""
        self._settle()
        self._inside.append(kind)
        try:
            yield
        finally:
            self._settle()
            self._inside.pop()

    def seconds(self) -> dict[str, float]:
        """Returns the seconds so far by kind, rounded to milliseconds."""
        self._settle()
        return {kind: round(seconds, 3) for kind, seconds in self._seconds.items()}

    def total(self) -> float:
        """Returns all seconds so far."""
        self._settle()
        return round(sum(self._seconds.values()), 3)

    def _settle(self) -> None:
        now = time.perf_counter()
        if self._inside or self._runs:
            self._seconds[self._inside[-1] if self._inside else TRAINING] += now - self._mark
        self._mark = now
