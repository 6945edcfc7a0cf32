"""``dataflex_complete.json``: what a checkpoint is made of, whose it is, and of which step.

It is written last. It holds the run, the global step, and size and digest of every file of the folder: a folder whose
parts come from two checkpoints is found out. Whatever stands in the file, reading it gives a mark or a reason.

A process that marks a checkpoint twice, or looks at it several times as it resumes, reads each file once, until the
file changes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from dataflex.core.files import COMPLETE, replacing
from dataflex.utils.progress import Progress

PREFIX = "checkpoint-"
TRAINER_STATE = "trainer_state.json"

_SETTLED = 0.1
"""Seconds after which a change of a file gives it another time, whatever its clock counts in."""

_WHOLE = 16 * 2**20
"""A file of up to so many bytes is digested whole: state, random states, scheduler and LoRA adapters are that small."""
_BLOCKS, _BLOCK = 128, 2**16
"""Of a larger file, so many blocks of so many bytes are, first and last among them: 8 MiB at 128 places, whether it has
a gigabyte or a hundred. That is milliseconds where the file was just written, and as many seeks on a slow disk. Weights
and moments of another step differ nearly everywhere; the last block of a file that torch wrote holds a checksum of each
of its tensors."""


@dataclass(frozen=True)
class Mark:
    """What the file says.

    Attributes:
        run: The run that wrote the checkpoint.
        step: Global steps done.
        files: Path inside of the folder -> (bytes, digest).
    """

    run: str
    step: int
    files: dict[str, tuple[int, str]]


class UnreadableMarkError(ValueError):
    """There is no such file, or it does not say what it must; the message is the reason."""


def mark_complete(folder: str | Path, run: str, step: int) -> None:
    """Declares a checkpoint whole as it stands. On one rank, after every rank has written; it may be called again.

    Args:
        folder: The checkpoint.
        run: The id of the run that wrote it.
        step: Global steps done.
    """
    folder = Path(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / COMPLETE]
    about: dict[str, dict[str, int | str]] = {}
    with Progress(f"reading {folder.name} to mark it as whole", len(files), "files") as progress:
        for path in files:
            about[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "digest": digest(path)}
            progress.done()
    with replacing(folder / COMPLETE) as temporary:
        temporary.write_text(json.dumps({"run": run, "step": step, "files": about}, indent=1), encoding="utf-8")


def run_of(folder: str | Path) -> str | None:
    """Returns the id of the run that a checkpoint says it belongs to, or None where it does not say."""
    try:
        return read_mark(folder).run
    except UnreadableMarkError:
        return None


def incompleteness(folder: str | Path, contents: bool = True) -> str | None:
    """Returns why a checkpoint cannot be used, or None where it is whole.

    Args:
        folder: The checkpoint.
        contents: Whether the files are read and their digests compared; else their sizes alone.
    """
    folder = Path(folder)
    try:
        mark = read_mark(folder)
    except UnreadableMarkError as error:
        return str(error)
    named = re.fullmatch(rf"{PREFIX}([0-9]+)", folder.name)
    if named is not None and int(named[1]) != mark.step:
        return f"{COMPLETE} is of step {mark.step}, the folder's name says {named[1]}"
    with Progress(f"reading {folder.name} to see whether it is whole", len(mark.files), "files") as progress:
        for name, (size, expected) in mark.files.items():
            reason = _mismatch(folder / name, name, size, expected if contents else None)
            if reason is not None:
                return reason
            progress.done()
    if TRAINER_STATE not in mark.files:
        return None
    step = _trainer_step(folder / TRAINER_STATE)
    return None if step in (None, mark.step) else f"{TRAINER_STATE} is of step {step}, {COMPLETE} of step {mark.step}"


def digest(path: Path) -> str:
    """Returns the digest of a file, or of a sample of a large one: 32 hex digits. Remembered until the file changes."""
    now = path.stat()
    if time.time() - max(now.st_mtime, now.st_ctime) < _SETTLED:  # the next change may leave its times as they are
        return _read(path, now.st_size)
    return _remembered(path.absolute(), now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino)


@functools.lru_cache(maxsize=4096)
def _remembered(path: Path, size: int, *_: int) -> str:
    return _read(path, size)


def _read(path: Path, size: int) -> str:
    found = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        if size <= _WHOLE:
            while block := file.read(2**20):
                found.update(block)
        else:
            for i in range(_BLOCKS):
                file.seek((size - _BLOCK) * i // (_BLOCKS - 1))
                found.update(file.read(_BLOCK))
    return found.hexdigest()


def read_mark(folder: str | Path) -> Mark:
    """Reads ``dataflex_complete.json``.

    Raises:
        UnreadableMarkError: With the reason.
    """
    try:
        content = json.loads((Path(folder) / COMPLETE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnreadableMarkError(f"{COMPLETE} is missing: the run was stopped while it was written") from None
    except RecursionError:
        raise UnreadableMarkError(f"{COMPLETE} cannot be read: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise UnreadableMarkError(f"{COMPLETE} cannot be read: {error}") from error
    return _checked(content)


def _checked(content: Any) -> Mark:
    if not isinstance(content, dict):
        raise UnreadableMarkError(f"{COMPLETE} cannot be read: it holds a {type(content).__name__}, not a mapping")
    run, step, files = (content.get(key) for key in ("run", "step", "files"))
    if "run" not in content and isinstance(files, dict) and files and all(_is_count(size) for size in files.values()):
        raise UnreadableMarkError(
            f"{COMPLETE} was written by an earlier version of dataflex, whose checkpoints are not resumed"
        )
    if not isinstance(run, str) or not run or not _is_count(step):
        raise UnreadableMarkError(
            f"{COMPLETE} cannot be read: it does not say which run wrote the checkpoint, and at which step"
        )
    if not isinstance(files, dict) or not files:
        raise UnreadableMarkError(f"{COMPLETE} cannot be read: it lists no files")
    found: dict[str, tuple[int, str]] = {}
    for name, about in files.items():
        size, expected = (about.get("bytes"), about.get("digest")) if isinstance(about, dict) else (None, None)
        if not _is_inside(name) or not _is_count(size) or not isinstance(expected, str):
            raise UnreadableMarkError(f"{COMPLETE} cannot be read: what it says of {name!r} is not a size and a digest")
        found[name] = (size, expected)
    return Mark(run, step, found)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _mismatch(path: Path, name: str, size: int, expected: str | None) -> str | None:
    try:
        if not path.exists():
            return f"{name} is missing"
        if not path.is_file():
            return f"{name} is not a file"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if expected is not None and digest(path) != expected:
            return f"{name} is not the file that was written with this checkpoint: its contents differ"
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return f"{name!r} cannot be read: {error}"
    return None


def _trainer_step(path: Path) -> int | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # as it was written; loading it says the rest
    step = content.get("global_step") if isinstance(content, dict) else None
    return step if isinstance(step, int) else None
