"""What the components of a run decided for a segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.planning.selecting import Candidates, Chosen, PlacedSelector


@dataclass(frozen=True)
class Decision:
    """What a component decided at an update.

    Attributes:
        verb: What it did: ``filter``, ``select``, ``mix`` or ``order``.
        name: The component.
        rows: How many rows it decided about.
        seconds: How long it took.
        decided: Its decision, for the hash; None where that is the rows of the segment.
        details: More keys for the trace line.
        news: What the log line says.
        scores: Scores to be summarised.
        candidates: The scores of all rows that it chose from; None where it gave none.
        placed: The selectors that decided, where it filters or selects; one for each source of a mixture.
        left_out: How many numbers that are not finite the component has left out so far.
    """

    verb: str
    name: str
    rows: int
    seconds: float
    decided: NDArray[Any] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    news: str = ""
    scores: NDArray[np.float64] | None = None
    placed: Sequence[PlacedSelector] = ()
    left_out: int = 0
    candidates: Candidates | None = None


@dataclass(frozen=True)
class Plan:
    """The rows of a segment, in the order of training, and what was decided for them."""

    chosen: Chosen
    decisions: Sequence[Decision] = ()
