"""What a component is told at an update, beyond its fixed arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RunAhead:
    """What is known of a run before its first step. Passed to :meth:`~dataflex.core.component.Component.check_run`.

    Attributes:
        updates: Number of updates of the whole run.
        total_steps: Global optimizer steps of the whole run.
        most_rows: Most rows that one update asks a selector for; 0 where no update asks for rows.
    """

    updates: int
    total_steps: int
    most_rows: int


@dataclass(frozen=True)
class UpdateContext:
    """The state of the run at an update. Passed to ``select``, ``mix`` and ``arrange`` as the keyword ``context``.

    Attributes:
        update: Number of this update, from 0.
        updates: Number of updates of the whole run.
        step: Global optimizer steps done.
        total_steps: Global optimizer steps of the whole run.
        learning_rate: The rate that the last step used.
        optimizer: The training optimizer, for its moments. A component must not change it.
        device_batch: Rows that a rank puts through the model at once in training; they are padded to one length.
    """

    update: int
    updates: int
    step: int
    total_steps: int
    learning_rate: float
    optimizer: torch.optim.Optimizer | None
    device_batch: int = 1
