"""The rewards of the answers that training has sampled anyway, by prompt, and when: scores that cost no rollout.

A trainer that samples answers (TRL's GRPO and RLOO) gathers their rewards over all ranks, because it compares the
answers of a prompt with each other. So every rank is given all of them, and all ranks hold the same four arrays without
a collective of their own:

    sums (N,) float64    squares (N,) float64    counts (N,) int32    steps (N,) int32, -1 where never sampled

Nothing is forgotten here: who asks decides how much an old reward still counts, by its age. A reward that is not
finite, as that of an answer which no reward function has scored, is left out.

Cost: 24 bytes per row of the dataset, in memory and in checkpoints. Letters: N rows of the dataset, G sampled answers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.core.context import RowRewards
from dataflex.core.errors import CheckpointError


class SeenRewards:
    """The rewards of each row's answers.

    Args:
        rows: N, rows of the train dataset.

    Attributes:
        sums: (N,) sum of the rewards.
        squares: (N,) sum of their squares.
        counts: (N,) how many there are.
        steps: (N,) optimizer steps done when the last of them was sampled; -1 for never.
        binary: Whether all of them are 0 or 1; True before the first.
    """

    def __init__(self, rows: int) -> None:
        self.sums: NDArray[np.float64] = np.zeros(rows)
        self.squares: NDArray[np.float64] = np.zeros(rows)
        self.counts: NDArray[np.int32] = np.zeros(rows, dtype=np.int32)
        self.steps: NDArray[np.int32] = np.full(rows, -1, dtype=np.int32)
        self.binary = True

    def add(self, rows_G: NDArray[np.int64], rewards_G: NDArray[np.floating[Any]], step: int) -> None:
        """Adds the rewards of a generation. Every rank is given those of all ranks.

        Args:
            rows_G: (G,) the row of each answer.
            rewards_G: (G,) its reward; one that is not finite is left out.
            step: Optimizer steps done: ``state.global_step`` when they were sampled.
        """
        finite = np.isfinite(rewards_G)
        rows, rewards = rows_G[finite], rewards_G[finite].astype(np.float64)
        np.add.at(self.sums, rows, rewards)
        np.add.at(self.squares, rows, rewards**2)
        np.add.at(self.counts, rows, 1)
        self.steps[rows] = step
        self.binary = self.binary and bool(np.isin(rewards, (0.0, 1.0)).all())

    def of(self, rows_S: NDArray[np.int64] | None, step: int) -> RowRewards:
        """Returns the rewards of rows, at a step; None for all rows."""
        rows: Any = slice(None) if rows_S is None else rows_S
        steps = self.steps[rows].astype(np.int64)
        ages = np.where(steps < 0, -1, step - steps)
        counts = self.counts[rows].astype(np.int64)
        return RowRewards(self.sums[rows].copy(), self.squares[rows].copy(), counts, ages, self.binary)

    def forget(self) -> None:
        """Forgets everything, as before the first step: a training that begins anew."""
        for array in (self.sums, self.squares, self.counts):
            array.fill(0)
        self.steps.fill(-1)
        self.binary = True

    def state_dict(self) -> dict[str, Any]:
        """Returns the arrays, for a checkpoint."""
        return {
            "sums": self.sums, "squares": self.squares, "counts": self.counts, "steps": self.steps,
            "binary": self.binary,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned. On every rank.

        Raises:
            CheckpointError: It is of a dataset with another number of rows.
        """
        if len(state["sums"]) != len(self.sums):
            raise CheckpointError(
                f"the checkpoint holds the rewards of {len(state['sums'])} prompts, the train dataset has "
                f"{len(self.sums)} -> resume with the data that the run began with"
            )
        self.sums, self.squares = (np.array(state[key], dtype=np.float64) for key in ("sums", "squares"))
        self.counts, self.steps = (np.array(state[key], dtype=np.int32) for key in ("counts", "steps"))
        self.binary = bool(state["binary"])


def means(found: RowRewards) -> NDArray[np.float64]:
    """Returns the mean reward of each row: (S,), NaN where none was sampled."""
    return np.asarray(np.divide(found.sums, found.counts, out=np.full(len(found.sums), np.nan), where=found.counts > 0))


def spreads(found: RowRewards) -> NDArray[np.float64]:
    """Returns the standard deviation of the rewards of each row: (S,), over n, NaN where none was sampled."""
    mean_S = means(found)
    square_S = np.divide(found.squares, found.counts, out=np.full(len(found.sums), np.nan), where=found.counts > 0)
    variance_S = square_S - mean_S**2
    # Of equal rewards the difference is rounding, which grows with their size and with how many were added up: it must
    # be 0, and not its square root.
    rounding_S = (1e-14 + np.finfo(np.float64).eps * found.counts) * square_S
    variance_S = np.where(variance_S <= rounding_S, 0.0, variance_S)
    return np.asarray(np.sqrt(variance_S))
