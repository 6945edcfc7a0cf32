"""From what each rank computed of its own rows to one array of all rows, losing and doubling none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from accelerate import Accelerator


def gather_by_row(
    rows: NDArray[np.int64], values: torch.Tensor, num_rows: int, accelerator: Accelerator | None = None
) -> NDArray[np.float32]:
    """Returns the values of all rows on every rank: (num_rows, ...) float32, row ``i`` at place ``i``.

    Collective where there is more than one rank: a sum over ranks of buffers that are zero where a rank has no value,
    so it is exact. NaN and infinity travel unchanged. Memory and traffic are ``num_rows`` values per rank, whatever
    the sharding.

    Args:
        rows: (n,) places that this rank computed; together, the ranks have each of ``num_rows`` exactly once.
        values: (n, ...) their values, on any device.
        num_rows: Number of rows over all ranks.
        accelerator: The run's accelerator; None means a single process.

    Raises:
        RuntimeError: On every rank, when a row was computed by no rank or more than once.
    """
    values = values.detach().to("cpu", torch.float32)
    places = torch.from_numpy(rows)
    buffer = torch.zeros((num_rows, *values.shape[1:]), dtype=torch.float32)
    buffer[places] = values
    coverage = torch.bincount(places, minlength=num_rows)
    if accelerator is not None and accelerator.num_processes > 1:
        buffer = torch.as_tensor(accelerator.reduce(buffer.to(accelerator.device), "sum")).cpu()
        coverage = torch.as_tensor(accelerator.reduce(coverage.to(accelerator.device), "sum")).cpu()
    wrong = (coverage != 1).nonzero().flatten()
    if len(wrong):
        raise RuntimeError(
            f"{len(wrong)} of {num_rows} rows were not computed exactly once over all ranks; row {int(wrong[0])} was "
            f"computed {int(coverage[wrong[0]])} times"
        )
    return buffer.numpy()
