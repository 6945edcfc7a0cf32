"""What a long pass has computed so far, on disk: a run that is stopped in the middle of scoring goes on from there.

Each rank writes parts, a few batches at a time, into a folder of the pass:

    cache_dir/dataflex_scores/OWNER-FINGERPRINT/part-NNNNNNNNNNNN.bin

The owner is the run's component, so that runs with one ``cache_dir`` keep apart; the fingerprint is that of everything
the values depend on (see :mod:`dataflex.scoring.passes.fingerprint`). When a pass writes its first part, the folders
that the same owner's other passes left are deleted: only inside of ``dataflex_scores``, only where our mark is, and
only our files. A pass that ends before the first part is due writes nothing. The parts are a cache: where they cannot
be written or read, the pass goes on without them and says so.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray

from dataflex.core.files import is_temporary, replacing
from dataflex.model.unwrapped import is_sharded
from dataflex.scoring.passes.on_cpu import OnTheCPU
from dataflex.utils.logging import logger

if TYPE_CHECKING:
    from accelerate import Accelerator

FOLDER = "dataflex_scores"
MARK = "dataflex_pass"
_CHECK = 16  # bytes of digest at the end of a part

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
        owner: Whose passes these are, the same on every rank and when the run is started again: ``output_dir`` and
            component. Blank where runs may take up each other's passes; then nothing of earlier passes is deleted.
    """

    def __init__(
        self, folder: str | Path, fingerprint: Callable[[], str], seconds: float = SECONDS, *, owner: str = ""
    ) -> None:
        self._folder = Path(folder) / FOLDER
        self._prefix = hashlib.blake2b(owner.encode(), digest_size=6).hexdigest() + "-" if owner else "any-"
        self._owned = bool(owner)
        self._fingerprint = fingerprint
        self._seconds = seconds
        self._key: str | None = None
        self._rank = 0
        self._broken = False
        self._begin()

    @classmethod
    def of(
        cls, folder: str | Path, accelerator: Accelerator | None, fingerprint: Callable[[], str], owner: str = ""
    ) -> ScoreStore | None:
        """Returns the store for a pass of the run, or None under an engine that shards the weights.

        There no rank can tell by itself which model it scored; an interrupted pass begins anew.
        """
        return None if is_sharded(accelerator) else cls(folder, fingerprint, owner=owner)

    def load(self, num_rows: int, accelerator: Accelerator | None = None, who: str = "scoring") -> Kept:
        """Returns what an interrupted pass over the same ``num_rows`` rows left, and logs it. Collective.

        Args:
            num_rows: N.
            accelerator: The run's accelerator; None means a single process.
            who: What the log line begins with.
        """
        self._begin()
        self._rank = 0 if accelerator is None else accelerator.process_index
        done: NDArray[np.bool_] = np.zeros(num_rows, dtype=np.bool_)
        values = self._read(done) if self._rank == 0 else None
        if accelerator is not None and accelerator.num_processes > 1:
            done, shape = broadcast_object_list([done, None if values is None else values.shape])
            if self._rank > 0 and shape is not None:
                values = np.empty((0, *shape[1:]), dtype=np.float32)
        if done.any() and self._rank == 0:
            logger.info("%s: goes on at row %d of %d, kept in %s", who, done.sum(), num_rows, self._pass_folder())
        return Kept(done, values)

    def add(self, rows: NDArray[np.int64], values: torch.Tensor) -> None:
        """Keeps the values of a batch; writes a part where one is due."""
        if self._broken:
            return
        self._rows.append(rows)
        self._values.add(values)
        if time.monotonic() - self._written >= self._seconds:
            self._write()

    def flush(self) -> None:
        """Writes what was added since the last part: the pass is about to be left."""
        if self._rows and not self._broken:
            self._write()

    def _begin(self) -> None:
        self._rows: list[NDArray[np.int64]] = []
        self._values = OnTheCPU()
        self._written = time.monotonic()

    def _write(self) -> None:
        folder = self._pass_folder()
        # Named by its first row: ranks and resumed passes never write the same part.
        part = folder / f"part-{int(self._rows[0][0]):012d}.bin"
        content = io.BytesIO()
        np.save(content, np.concatenate(self._rows), allow_pickle=False)
        np.save(content, self._values.joined().numpy(), allow_pickle=False)
        try:
            self._delete_earlier(folder)
            with replacing(folder / MARK) as temporary:
                temporary.write_text("Parts of a scoring pass of dataflex. The next pass deletes them.\n")
            with replacing(part) as temporary, open(temporary, "wb") as file:
                file.write(content.getbuffer())
                file.write(_check(content.getbuffer()))
        except OSError as error:
            self._broken = True
            logger.warning(
                "cache_dir: %s cannot be written (%s); scoring goes on, but if it is interrupted it starts again",
                part,
                error,
            )
        self._begin()

    def _delete_earlier(self, current: Path) -> None:
        """Deletes what the owner's other passes left; whatever else stands there stays."""
        for folder in self._own_folders():
            if folder == current or not (folder / MARK).is_file():
                continue
            for path in [*folder.glob("part-*.bin"), *filter(is_temporary, folder.iterdir()), folder / MARK]:
                path.unlink(missing_ok=True)  # the mark last: a half-deleted folder is still known as ours
            with suppress(OSError):  # somebody put a file of his own there
                folder.rmdir()

    def _own_folders(self) -> Iterator[Path]:
        if self._owned and self._folder.is_dir():
            for folder in self._folder.glob(f"{self._prefix}*"):
                if folder.is_dir() and not folder.is_symlink():
                    yield folder

    def _read(self, done: NDArray[np.bool_]) -> NDArray[np.float32] | None:
        """Marks what is there as ``done`` and returns the values."""
        try:
            standing = self._folder.is_dir() and any(self._folder.glob(f"{self._prefix}*"))
            parts = sorted(self._pass_folder().glob("part-*.bin")) if standing else []
        except OSError as error:
            logger.warning("cache_dir: %s cannot be read (%s); all rows are scored", self._folder, error)
            return None
        values: NDArray[np.float32] | None = None
        for path in parts:
            try:
                rows, found = _part(path)
            except (OSError, ValueError) as error:
                logger.warning("%s cannot be read (%s); its rows are scored again", path, error)
                continue
            if values is None:
                values = np.zeros((len(done), *found.shape[1:]), dtype=np.float32)
            values[rows] = found
            done[rows] = True
        return values

    def _pass_folder(self) -> Path:
        if self._key is None:
            self._key = self._fingerprint()
        return self._folder / f"{self._prefix}{self._key}"


def _part(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Reads a part. Its digest is looked at first: NumPy fails in a dozen ways on bytes that are not its own.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not as it was written.
    """
    content = path.read_bytes()
    if len(content) <= _CHECK or _check(content[:-_CHECK]) != content[-_CHECK:]:
        raise ValueError("it is not as it was written")
    file = io.BytesIO(content)
    return np.load(file, allow_pickle=False), np.load(file, allow_pickle=False)


def _check(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECK).digest()
