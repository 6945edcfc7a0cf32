"""From what each rank computed of its own rows to one array of all rows, losing and doubling none.

Values go over the ranks a part at a time and are put together on the CPU: a device holds one part, whatever the number
of rows (a million rows of 4,096 numbers are 16 GB). Parts go over the devices because NCCL sends nothing else.

Letters: N rows, n rows of a rank, R ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from accelerate import Accelerator

PART_NUMBERS = 2**24
"""Numbers of all ranks together that are on a device at a time: 64 MB of float32."""


def gather_by_row(
    rows: NDArray[np.int64],
    values: torch.Tensor,
    num_rows: int,
    accelerator: Accelerator | None = None,
    *,
    everywhere: bool = True,
) -> NDArray[np.float32]:
    """Returns the values of all rows, on the CPU: (num_rows, ...) float32, row ``i`` at place ``i``.

    Collective where there is more than one rank. NaN and infinity travel unchanged. A device holds one part of
    :data:`PART_NUMBERS` numbers at a time.

    Args:
        rows: (n,) places that this rank computed; together, the ranks have each of ``num_rows`` exactly once.
        values: (n, ...) their values, on any device. Of a rank without rows, (0, ...).
        num_rows: Number of rows over all ranks.
        accelerator: The run's accelerator; None means a single process.
        everywhere: Whether every rank gets the values; otherwise rank 0 alone does, and the others (0, ...).

    Raises:
        RuntimeError: On every rank, when a row was computed by no rank or more than once.
    """
    ranks = 1 if accelerator is None else accelerator.num_processes
    wanted = everywhere or accelerator is None or accelerator.is_main_process
    values = values.detach()
    buffer = np.zeros((num_rows if wanted else 0, *values.shape[1:]), dtype=np.float32)
    coverage = np.zeros(num_rows, dtype=np.int64)
    if accelerator is None or ranks == 1:
        coverage += np.bincount(rows, minlength=num_rows)
        buffer[rows] = values.to("cpu", torch.float32).numpy()
    else:
        own = torch.tensor([len(rows)], device=accelerator.device)
        most = int(torch.as_tensor(accelerator.gather(own)).max())
        step = max(1, PART_NUMBERS // ranks // max(1, values.shape[1:].numel()))
        for start in range(0, most, step):
            size = min(step, most - start)
            places, found = _part(rows, values, slice(start, start + size), size, accelerator)
            np.add.at(coverage, places, 1)  # touches this part, not all rows
            if wanted:
                buffer[places] = found
    wrong = np.flatnonzero(coverage != 1)
    if len(wrong):
        raise RuntimeError(
            f"{len(wrong)} of {num_rows} rows were not computed exactly once over all ranks; row {wrong[0]} was "
            f"computed {coverage[wrong[0]]} times"
        )
    return buffer


def _part(
    rows: NDArray[np.int64], values: torch.Tensor, part: slice, size: int, accelerator: Accelerator
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns the places and values of a part of every rank's rows. Each rank sends ``size`` rows, with padding."""
    places = torch.full((size,), -1, dtype=torch.int64)
    places[: len(rows[part])] = torch.from_numpy(np.ascontiguousarray(rows[part]))
    own = torch.zeros((size, *values.shape[1:]), dtype=torch.float32, device=accelerator.device)
    own[: len(values[part])] = values[part].to(own)
    everyone = torch.as_tensor(accelerator.gather(places.to(accelerator.device))).cpu().numpy()
    found = torch.as_tensor(accelerator.gather(own)).cpu().numpy()
    there = everyone >= 0
    return everyone[there], found[there]


def sum_over_ranks(values: NDArray[np.float64], accelerator: Accelerator | None) -> NDArray[np.float64]:
    """Returns the sum over all ranks in float64, the same on each. Collective where there is more than one.

    The bits travel as integers and are added up on the CPU in the order of the ranks: not every device has float64
    (Apple's MPS has none, and the collectives of others do not take it). A device holds one part at a time.

    Args:
        values: Numbers of any shape, the same shape on every rank.
        accelerator: The run's accelerator; None means a single process.
    """
    if accelerator is None or accelerator.num_processes == 1:
        return values
    flat = np.ascontiguousarray(values, dtype=np.float64).reshape(-1)
    total = np.empty_like(flat)
    step = max(1, PART_NUMBERS // 2 // accelerator.num_processes)
    for start in range(0, len(flat), step):
        part = torch.from_numpy(flat[start : start + step].view(np.int64)).to(accelerator.device)
        everyone = torch.as_tensor(accelerator.gather(part)).cpu().numpy().view(np.float64)
        total[start : start + step] = everyone.reshape(accelerator.num_processes, -1).sum(axis=0)
    return total.reshape(values.shape)
