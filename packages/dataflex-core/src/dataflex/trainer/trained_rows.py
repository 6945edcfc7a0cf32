"""The rows that a run without a plan has trained on, for its record: one file per stretch of steps.

The numbers are on the device, in the batches; they are read, and gathered over the ranks, once a stretch and before a
checkpoint. A checkpoint holds the rows of the stretch that is under way, so a resumed run writes the files of the run
that was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

STRETCH = 500
"""Steps of a stretch, at most."""
MOST_ROWS = 2**17
"""Rows of a stretch, at most, but for a single step with more: 1 MB of a checkpoint."""

Write = Callable[[int, NDArray[np.int64], None], None]


class TrainedRows:
    """Collects the rows of the steps and writes them down.

    Args:
        write: ``write(step, rows, None)`` writes the rows of the stretch that begins after ``step`` steps.
        accelerator: The run's accelerator.
        global_batch_size: Rows of a step over all ranks.
    """

    def __init__(self, write: Write, accelerator: Accelerator, global_batch_size: int) -> None:
        self._write, self._accelerator = write, accelerator
        self._steps = max(1, min(STRETCH, MOST_ROWS // max(1, global_batch_size)))
        self.forget()

    def forget(self) -> None:
        """Begins anew."""
        self._start: int | None = None  # of the stretch that is under way
        self._new: list[torch.Tensor] = []  # this rank's, micro-batch by micro-batch
        self._flattened: list[bool] = []
        self._all: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # read, and gathered

    def add(self, rows: Sequence[torch.Tensor | None], step: int, flattened: Sequence[bool] = ()) -> None:
        """Adds the rows of the step that begins. Collective.

        Args:
            rows: Of each micro-batch, (B,) numbers on the device.
            step: Global optimizer steps done.
            flattened: For each, whether it has a number for each document of its rows, so that one may follow itself;
                empty where none has.
        """
        if self._start is not None and step // self._steps != self._start // self._steps:
            self.finish()
        self._start = step if self._start is None else self._start
        marks = flattened or [False] * len(rows)
        there = [(found, mark) for found, mark in zip(rows, marks, strict=True) if found is not None]
        self._new.extend(found for found, _ in there)
        self._flattened.extend(mark for _, mark in there)

    @property
    def start(self) -> int | None:
        """Steps done when the stretch that is under way began; None where none is."""
        return self._start

    def finish(self) -> None:
        """Writes the stretch that is under way, if any. Collective."""
        self.settle()
        if self._start is not None and len(self._all):
            self._write(self._start, self._all, None)
        self.forget()

    def settle(self) -> None:
        """Reads what is on the devices, so that :meth:`state_dict` holds it. Collective."""
        if self._new:
            parts = zip(gathered(self._new, self._accelerator), self._repeated(), strict=True)
            self._all = np.concatenate([self._all, *(without_repeats(rows) if mark else rows for rows, mark in parts)])
        self._new, self._flattened = [], []

    def _repeated(self) -> list[bool]:
        """Returns the mark of each batch that :func:`gathered` gives."""
        return [mark for mark in self._flattened for _ in range(self._accelerator.num_processes)]

    def state_dict(self) -> dict[str, Any]:
        """Returns the rows of the stretch that is under way, once they are settled."""
        return {"start": self._start, "rows": self._all}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.forget()
        self._start, self._all = state["start"], np.array(state["rows"], dtype=np.int64)


def gathered(batches: Sequence[torch.Tensor], accelerator: Accelerator) -> list[NDArray[np.int64]]:
    """Returns the batches of all ranks in the order of training: batch by batch, in each by rank. Collective.

    Args:
        batches: This rank's batches, (B,) each and as many on every rank.
        accelerator: The run's accelerator.
    """
    own, sizes_M = torch.cat(list(batches)), [len(batch) for batch in batches]
    if accelerator.num_processes == 1:
        return np.split(own.cpu().numpy(), np.cumsum(sizes_M)[:-1])
    sizes = torch.tensor(sizes_M, dtype=torch.int64, device=accelerator.device)
    sizes_RM = torch.as_tensor(accelerator.gather(sizes)).view(accelerator.num_processes, -1).cpu().numpy()
    width = int(sizes_RM.sum(axis=1).max())
    padded = torch.nn.functional.pad(own.to(accelerator.device), (0, width - len(own)))
    rows_RW = torch.as_tensor(accelerator.gather(padded)).view(accelerator.num_processes, width).cpu().numpy()
    of_rank = [np.split(rows_W, ends_M) for rows_W, ends_M in zip(rows_RW, sizes_RM.cumsum(axis=1), strict=True)]
    return [parts[batch] for batch in range(len(batches)) for parts in of_rank]


def without_repeats(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the rows without those that stand right behind themselves."""
    return rows[np.concatenate([[True], rows[1:] != rows[:-1]])] if len(rows) else rows
