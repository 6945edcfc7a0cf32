"""What the folder of a run holds, typed: the one thing that the rest of the report looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RunSource:
    """A source of the train dataset.

    Attributes:
        name: Its name.
        first: The number of its first row; None where its rows are not one after the other.
        rows: How many it has; None for a stream.
        tokens: How many tokens they have; None where that is not known.
        words: The words that stand out in it, where it is a group of rows without a name of its own.
    """

    name: str
    first: int | None
    rows: int | None = None
    tokens: int | None = None
    words: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """Its name, with its words where it has any."""
        return f"{self.name} ({', '.join(self.words)})" if self.words else self.name


@dataclass(frozen=True)
class PlannedSegment:
    """A stretch of steps and the file of its rows.

    Attributes:
        step: Steps done when it begins.
        file: The archive in ``dataflex_selections``.
        update: Number of the update that chose its rows; None for a warm-up.
        decided: Whether an update chose its rows; unknown updates of old records count by the trace.
        steps: How many steps it has, where that is known.
        tokens: Tokens of its rows, where known.
        sources: Source -> (rows, tokens or None), where the record says it.
    """

    step: int
    file: Path
    update: int | None = None
    decided: bool = False
    steps: int | None = None
    tokens: int | None = None
    sources: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class RowText:
    """The text of a row, or of a target row.

    Attributes:
        text: As it was decoded, made harmless.
        cut: Whether it goes on.
        source: Of a row of the train dataset, where it says so.
        tokens: How many it has.
    """

    text: str
    cut: bool = False
    source: str | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Reason:
    """Why a row has the score, or the weight, that it has.

    Attributes:
        step: Steps done at the update.
        update: The update.
        component: Who explained it.
        value: The score or the weight.
        is_weight: Which of the two.
        seconds: What the explanations of that update took.
        targets: (set, target row, share of the score) of the target rows that pulled it most.
    """

    step: int
    update: int | None
    component: str
    value: float | None
    is_weight: bool
    seconds: float | None
    targets: tuple[tuple[str, int, float | None], ...]


@dataclass(frozen=True)
class RunData:
    """A run, as its folder tells it.

    Attributes:
        folder: Its ``output_dir``.
        name: What the page calls it.
        state: ``running``, ``finished``, ``stopped``, ``failed``, ``killed``, ``unfinished`` or ``unknown``.
        state_says: A sentence about it.
        does: What it does, in words.
        train_type: The train type; ``static`` where nothing says another.
        parts: (kind, component) of its components.
        step: Steps done.
        total_steps: Steps in all, where known.
        updates: Updates that took place, as the trace says.
        planned_updates: Updates that the run was to make in all, where it says so.
        batch: Rows of a step; None where that is not known.
        rows: Rows of the train dataset; None where that is not known.
        sources: Its sources; empty where they are not known.
        seconds: What the time went into, in seconds.
        trace: The lines of the trace.
        logs: The lines of the log, with ``step``.
        segments: The segments in order.
        texts: Row -> its text.
        targets: (set, target) -> its text.
        reasons: Row -> the last explanation of it.
        last_scores: (N,) scores of the last update, NaN for none; None where there are none.
        row_sources: (N,) the place of each row's source; None where rows follow each other source by source.
        config: The configuration, secrets masked.
        components: Section -> preset -> entry of ``dataflex_components.yaml``.
        results: ``all_results.json``.
        warnings: (text, times) of the run's warnings.
        starts: Steps at which it was started.
        notes: What is missing or damaged, in words.
        old: Whether it was recorded before runs left what the report reads.
        final_weights: Source -> the weight that a mixer came to, as it left it for another run; empty without.
        weighed_steps: Steps that these are the mean over; None without.
        round: Number of the round, where a command trains a run several times that leaves such weights; None elsewhere.
    """

    folder: Path
    name: str
    state: str
    state_says: str
    does: str
    train_type: str
    parts: tuple[tuple[str, str], ...]
    step: int
    total_steps: int | None
    updates: int
    planned_updates: int | None
    batch: int | None
    rows: int | None
    sources: tuple[RunSource, ...]
    seconds: Mapping[str, float]
    trace: tuple[Mapping[str, Any], ...]
    logs: tuple[Mapping[str, Any], ...]
    segments: tuple[PlannedSegment, ...]
    texts: Mapping[int, RowText]
    targets: Mapping[tuple[str, int], RowText]
    reasons: Mapping[int, Reason]
    last_scores: NDArray[np.float32] | None
    row_sources: NDArray[np.int64] | None
    config: Mapping[str, Any]
    components: Mapping[str, Any]
    results: Mapping[str, Any]
    warnings: tuple[tuple[str, int], ...]
    starts: tuple[int, ...]
    notes: tuple[str, ...]
    old: bool
    final_weights: Mapping[str, float] = field(default_factory=dict)
    weighed_steps: int | None = None
    round: int | None = None

    def lines(self, *kinds: str) -> list[Mapping[str, Any]]:
        """Returns the lines of the trace of these kinds."""
        return [line for line in self.trace if line.get("kind") in kinds]

    @property
    def update_steps(self) -> list[int]:
        """The steps at which updates took place, in order, each once."""
        steps = {
            line["step"] for line in self.lines("filter", "select", "mix", "order") if line.get("update") is not None
        }
        return sorted(steps)
