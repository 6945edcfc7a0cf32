"""The gradients of the sources over the steps since a window was last closed.

Letters: K sources, D numbers of a sketch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from dataflex.core.cost import Ahead, Cost
from dataflex.interfaces.source_gradients import SourceGradients
from numpy.typing import NDArray


def sketch_cost(params: Mapping[str, Any], ahead: Ahead, more: int = 0) -> Cost:
    """Returns the memory that sketches of the sources take. They come out of training's backward pass.

    Args:
        params: Those of the mixer, ``proj_dim`` among them.
        ahead: What is known of the run.
        more: Sketches that are kept beside those of the sources.
    """
    width = float(params["proj_dim"] or ahead.trainable)
    kept = 8 * width * (ahead.sources + more)
    return Cost(
        device_bytes=4 * width * (ahead.sources + ahead.step.rows / max(1, ahead.micro_batches)),
        host_bytes=kept,
        state_bytes=kept,
        notes=("sketches of gradients are made in the backward pass of each measured step",),
    )


class GradientWindow:
    """Sums over the measured steps of a window. Its memory is K D numbers, once there is a step.

    Attributes:
        sums_KD: (K, D) sums of the gradients of rows; None before the first step.
        squares_K: (K,) sums of their squared norms.
        counts_K: (K,) what a mean divides by: tokens or rows.
        rows_K: (K,) rows.
        steps: Steps that were measured.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begins another window."""
        self.sums_KD: NDArray[np.float64] | None = None
        self.squares_K: NDArray[np.float64] = np.zeros(0)
        self.counts_K: NDArray[np.float64] = np.zeros(0)
        self.rows_K: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.steps = 0

    def add(self, found: SourceGradients) -> None:
        """Adds a step."""
        if self.sums_KD is None:
            self.sums_KD, self.squares_K = found.sums.copy(), found.squares.copy()
            self.counts_K, self.rows_K = found.counts.copy(), found.rows.copy()
        else:
            self.sums_KD = self.sums_KD + found.sums
            self.squares_K = self.squares_K + found.squares
            self.counts_K, self.rows_K = self.counts_K + found.counts, self.rows_K + found.rows
        self.steps += 1

    def norms(self, sources: int) -> NDArray[np.float64]:
        """Returns the norm of each source's mean gradient: (K,), NaN for a source without rows.

        Args:
            sources: K.
        """
        norms_K = np.full(sources, np.nan)
        if self.sums_KD is not None:
            seen_K = self.counts_K > 0
            norms_K[seen_K] = np.linalg.norm(self.sums_KD[seen_K], axis=1) / self.counts_K[seen_K]
        return norms_K

    def state_dict(self) -> dict[str, Any]:
        """Returns the open window."""
        return {
            "sums": self.sums_KD, "squares": self.squares_K, "counts": self.counts_K, "rows": self.rows_K,
            "steps": self.steps,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.sums_KD = None if state["sums"] is None else np.array(state["sums"], dtype=np.float64)
        self.squares_K, self.counts_K = (np.array(state[key], dtype=np.float64) for key in ("squares", "counts"))
        self.rows_K, self.steps = np.array(state["rows"], dtype=np.int64), int(state["steps"])
