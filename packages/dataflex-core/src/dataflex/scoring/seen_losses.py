"""The losses of rows that training has just computed anyway, and when: scores that cost no pass.

Each rank notes the losses of its own rows on the device and waits for nothing. At an update, and before a checkpoint,
all ranks bring their notes together. They then hold the same two arrays, whatever the number of ranks:

    losses (N,) float32, NaN where never seen        steps (N,) int32, -1 where never seen

Of the notes of a row the one of the latest step counts; of several at one step (a row that was drawn twice, or that
fills up the last batch) their mean. A loss that is not finite is left out, and the row keeps what it had: it is that of
a row without labels, or of a step that overflowed.

Cost: 8 bytes per row of the dataset, and 16 per row trained on since ranks last came together. Letters: N rows of the
dataset, B rows of a micro-batch, n notes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.errors import CheckpointError
from dataflex.core.ranks.by_row import PART_NUMBERS

if TYPE_CHECKING:
    from accelerate import Accelerator

_TOGETHER = 256  # notes that leave the device as one
_OnDevice = tuple[torch.Tensor, torch.Tensor, int]  # rows, losses, step: of a micro-batch
_OnItsWay = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # rows, losses, steps: going to the CPU, or there
_Notes = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int32]]  # rows, losses, steps: (n,) each


class SeenLosses:
    """The last loss that training saw of each row, and the step.

    Args:
        rows: N, rows of the train dataset.

    Attributes:
        losses: (N,) float32, NaN where never seen. As of the last :meth:`gather`.
        steps: (N,) int32 optimizer steps done when the loss was computed, -1 where never seen.
    """

    def __init__(self, rows: int) -> None:
        self.losses: NDArray[np.float32] = np.full(rows, np.nan, dtype=np.float32)
        self.steps: NDArray[np.int32] = np.full(rows, -1, dtype=np.int32)
        self._notes: list[_OnDevice] = []
        self._left: list[_OnItsWay] = []

    def note(self, rows_B: torch.Tensor, losses_B: torch.Tensor, step: int) -> None:
        """Notes the losses of a micro-batch. Each rank for its own rows; makes no collective call, waits for nothing.

        Args:
            rows_B: (B,) row numbers, on any device.
            losses_B: (B,) mean token losses, NaN for a row without labels; on the same device.
            step: Optimizer steps done: ``state.global_step`` in the forward.
        """
        self._notes.append((rows_B.detach(), losses_B.detach().float(), step))
        if len(self._notes) >= _TOGETHER:
            self._send()

    def gather(self, accelerator: Accelerator | None = None) -> None:
        """Brings the notes of all ranks into :attr:`losses` and :attr:`steps`. Collective, between two optimizer steps.

        Args:
            accelerator: The run's accelerator; None means a single process.
        """
        rows, losses, steps = _latest(*_finite(*self._taken()))
        if accelerator is not None and accelerator.num_processes > 1:
            rows, losses, steps = _of_all_ranks(rows, losses, steps, accelerator)
        places, means, when = _means(*_latest(rows, losses, steps))
        self.losses[places], self.steps[places] = means, when

    def forget(self) -> None:
        """Forgets everything, as before the first step: a training that begins anew."""
        self._notes, self._left = [], []
        self.losses.fill(np.nan)
        self.steps.fill(-1)

    def state_dict(self) -> dict[str, Any]:
        """Returns both arrays, for a checkpoint; after :meth:`gather`."""
        assert not self._notes + self._left, "the notes of a rank would be lost"
        return {"losses": self.losses, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned. On every rank.

        Raises:
            CheckpointError: It is of a dataset with another number of rows.
        """
        losses, steps = np.array(state["losses"], dtype=np.float32), np.array(state["steps"], dtype=np.int32)
        if losses.shape != self.losses.shape:
            raise CheckpointError(
                f"the checkpoint holds the seen losses of {len(losses)} rows, the train dataset has {len(self.losses)} "
                "-> resume with the data that the run began with"
            )
        self._notes, self._left = [], []
        self.losses, self.steps = losses, steps

    def _send(self) -> None:
        """Sends what is noted to the CPU, behind what the device has to do, without waiting for it."""
        if not self._notes:
            return
        rows, losses, steps = zip(*self._notes, strict=True)
        counts = [len(part) for part in rows]
        when = torch.repeat_interleave(torch.tensor(steps, dtype=torch.int32), torch.tensor(counts))
        together, values = torch.cat(rows), torch.cat(losses)
        self._left.append((together.to("cpu", non_blocking=True), values.to("cpu", non_blocking=True), when))
        self._notes = []

    def _taken(self) -> _Notes:
        """Returns this rank's notes, and forgets them. Waits for the device."""
        self._send()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()  # the copies above may still be on their way
        parts, self._left = self._left, []
        rows = np.concatenate([np.empty(0, dtype=np.int64), *(part[0].numpy() for part in parts)])
        losses = np.concatenate([np.empty(0, dtype=np.float32), *(part[1].numpy() for part in parts)])
        steps = np.concatenate([np.empty(0, dtype=np.int32), *(part[2].numpy() for part in parts)])
        return rows, losses, steps


def _finite(rows: NDArray[np.int64], losses: NDArray[np.float32], steps: NDArray[np.int32]) -> _Notes:
    kept = np.isfinite(losses)
    return rows[kept], losses[kept], steps[kept]


def _latest(rows: NDArray[np.int64], losses: NDArray[np.float32], steps: NDArray[np.int32]) -> _Notes:
    """Returns the notes of each row's latest step: (m,), sorted by row and then by loss, so in no order of ranks."""
    order = np.lexsort((losses, steps, rows))
    rows, losses, steps = rows[order], losses[order], steps[order]
    lasts = np.flatnonzero(np.append(rows[1:] != rows[:-1], np.ones(min(1, len(rows)), dtype=np.bool_)))
    counts = np.diff(lasts, prepend=-1)
    kept = steps == np.repeat(steps[lasts], counts)
    return rows[kept], losses[kept], steps[kept]


def _means(rows: NDArray[np.int64], losses: NDArray[np.float32], steps: NDArray[np.int32]) -> _Notes:
    """Returns one note for each row: the mean of its losses, which :func:`_latest` has sorted."""
    if not len(rows):
        return rows, losses, steps
    firsts = np.flatnonzero(np.append(True, rows[1:] != rows[:-1]))
    sums = np.add.reduceat(losses.astype(np.float64), firsts)
    counts = np.diff(firsts, append=len(rows))
    return rows[firsts], (sums / counts).astype(np.float32), steps[firsts]


def _of_all_ranks(
    rows: NDArray[np.int64], losses: NDArray[np.float32], steps: NDArray[np.int32], accelerator: Accelerator
) -> _Notes:
    """Returns the notes of all ranks. Collective; a device holds a part of them at a time."""
    own = np.stack([rows, steps.astype(np.int64) << 32 | losses.view(np.uint32).astype(np.int64)], axis=1)
    counts = torch.as_tensor(accelerator.gather(torch.tensor([len(own)], device=accelerator.device)))
    most, step = int(counts.max()), max(1, PART_NUMBERS // 4 // accelerator.num_processes)
    found = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, most, step):
        size = min(step, most - start)
        part = np.full((size, 2), -1, dtype=np.int64)
        mine = own[start : start + size]
        part[: len(mine)] = mine
        everyone = torch.as_tensor(accelerator.gather(torch.from_numpy(part).to(accelerator.device))).cpu().numpy()
        found.append(everyone[everyone[:, 0] >= 0])
    notes = np.concatenate(found)
    packed = np.ascontiguousarray(notes[:, 1])
    values = (packed & 0xFFFFFFFF).astype(np.uint32).view(np.float32)
    return np.ascontiguousarray(notes[:, 0]), values, (packed >> 32).astype(np.int32)
