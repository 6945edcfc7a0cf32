"""What a long pass has computed so far, on disk: a run that is stopped in the middle of scoring goes on from there.

Each rank writes parts, a few batches at a time, into a folder named by the fingerprint of everything the values depend
on (see :mod:`dataflex.scoring.fingerprint`). A pass with another fingerprint does not look there; it deletes what other
passes left. A pass that ends before the first part is due writes nothing.
"""

from __future__ import annotations

import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray

from dataflex.run.files import replacing
from dataflex.scoring.models import is_sharded
from dataflex.utils.logging import logger

if TYPE_CHECKING:
    from accelerate import Accelerator

SECONDS = 60.0
"""How often a rank writes a part: what an interrupted pass loses."""


@dataclass(frozen=True)
class Kept:
    """Values that an interrupted pass left.

    Attributes:
        done: (N,) whether a row's value is there; the same on every rank.
        values: (N, ...) float32 values, 0 where there is none; on rank 0 alone, (0, ...) elsewhere. None where there
            is nothing.
    """

    done: NDArray[np.bool_]
    values: NDArray[np.float32] | None

    def joined(
        self, own: NDArray[np.int64], found: torch.Tensor, accelerator: Accelerator | None
    ) -> tuple[NDArray[np.int64], torch.Tensor]:
        """Returns this rank's rows and values with those of before, which rank 0 brings in."""
        if self.values is None or not self.done.any():
            return own, found
        if not len(self.values):  # not rank 0: of what is there, it knows the shape alone
            return own, found if found.ndim == self.values.ndim else torch.from_numpy(self.values)
        missing = np.flatnonzero(self.done & ~np.isin(np.arange(len(self.done)), own))
        before = torch.from_numpy(self.values[missing])
        joined = torch.cat([before, found.to(before)]) if len(own) else before
        return np.concatenate([missing, own]), joined


class ScoreStore:
    """The parts of one pass.

    Args:
        folder: The component's ``cache_dir``, or a folder inside of it. On several nodes, one that all of them see.
        fingerprint: Returns the digest of everything the values depend on, the same on every rank. It is computed only
            where there is something to read or to write, on every rank or on one alone, so it makes no collective call.
        seconds: How often to write.
    """

    def __init__(self, folder: str | Path, fingerprint: Callable[[], str], seconds: float = SECONDS) -> None:
        self._folder = Path(folder)
        self._fingerprint = fingerprint
        self._seconds = seconds
        self._key: str | None = None
        self._rank = 0
        self._begin()

    @classmethod
    def of(
        cls, folder: str | Path, accelerator: Accelerator | None, fingerprint: Callable[[], str]
    ) -> ScoreStore | None:
        """Returns the store for a pass of the run, or None under an engine that shards the weights.

        There no rank can tell by itself which model it scored; an interrupted pass begins anew.
        """
        return None if is_sharded(accelerator) else cls(folder, fingerprint)

    def load(self, num_rows: int, accelerator: Accelerator | None = None) -> Kept:
        """Returns what an interrupted pass over the same ``num_rows`` rows left. Collective."""
        self._begin()
        self._rank = 0 if accelerator is None else accelerator.process_index
        done: NDArray[np.bool_] = np.zeros(num_rows, dtype=np.bool_)
        values = self._read(done) if self._rank == 0 else None
        if accelerator is not None and accelerator.num_processes > 1:
            done, shape = broadcast_object_list([done, None if values is None else values.shape])
            if self._rank > 0 and shape is not None:
                values = np.empty((0, *shape[1:]), dtype=np.float32)
        if done.any() and self._rank == 0:
            logger.info("taking up an interrupted pass: %d of %d rows are scored already", done.sum(), num_rows)
        return Kept(done, values)

    def add(self, rows: NDArray[np.int64], values: torch.Tensor) -> None:
        """Keeps the values of a batch; writes a part where one is due."""
        self._rows.append(rows)
        self._values.append(values.detach().to("cpu", torch.float32))
        if time.monotonic() - self._written >= self._seconds:
            self._write()

    def _begin(self) -> None:
        self._rows: list[NDArray[np.int64]] = []
        self._values: list[torch.Tensor] = []
        self._written = time.monotonic()

    def _write(self) -> None:
        folder = self._folder / self._digest()
        for other in self._folder.glob("*"):
            if other.is_dir() and other != folder:
                shutil.rmtree(other, ignore_errors=True)
        # Named by its first row: ranks and resumed passes never write the same part.
        part = folder / f"part-{int(self._rows[0][0]):012d}.npz"
        with replacing(part) as temporary, open(temporary, "wb") as file:
            np.savez(file, rows=np.concatenate(self._rows), values=torch.cat(self._values).numpy())
        self._begin()

    def _read(self, done: NDArray[np.bool_]) -> NDArray[np.float32] | None:
        """Marks what is there as ``done`` and returns the values."""
        if not self._folder.is_dir() or not any(path.is_dir() for path in self._folder.iterdir()):
            return None
        values: NDArray[np.float32] | None = None
        for path in sorted((self._folder / self._digest()).glob("part-*.npz")):
            try:
                with np.load(path) as part:
                    rows, found = part["rows"], part["values"]
            except (OSError, ValueError, KeyError, zipfile.BadZipFile):
                logger.warning("%s cannot be read; its rows are scored again", path)
                continue
            if values is None:
                values = np.zeros((len(done), *found.shape[1:]), dtype=np.float32)
            values[rows] = found
            done[rows] = True
        return values

    def _digest(self) -> str:
        if self._key is None:
            self._key = self._fingerprint()
        return self._key
