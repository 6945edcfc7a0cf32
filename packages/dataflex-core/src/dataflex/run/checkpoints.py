"""Marks complete checkpoints; resume skips others.

A checkpoint folder is written by several ranks, file after file, and a run may be killed in between. So the last thing
written is a list of its files (see :mod:`dataflex.run.completeness`); a folder is complete exactly when that list is
there and holds. The list is removed before anything in the folder is touched again, and older checkpoints are deleted
only after it is written: at every moment the newest complete checkpoint can be resumed.

The first thing written is ``dataflex_state.pt``, and it is deleted last: a folder without it, whatever its name, is not
ours, and is neither deleted nor written into.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from dataflex.core.errors import CheckpointError, ConfigError
from dataflex.core.files import (
    COMPLETE,
    COMPONENTS,
    CONFIG,
    REPLACED,
    SELECTIONS,
    STATE,
    is_temporary,
    move_aside,
)
from dataflex.run.completeness import PREFIX, incompleteness, mark_complete, run_of
from dataflex.run.record_files import FILES
from dataflex.utils.logging import logger

__all__ = [
    "PREFIX",
    "all_checkpoints",
    "begin_writing",
    "incompleteness",
    "is_ours",
    "mark_complete",
    "naming_write_errors",
    "newest_complete",
    "require_complete",
    "require_writable",
    "rotate",
    "run_of",
    "step_of",
]

_BEGUN = "checkpoint-is-incomplete.txt"  # the first file of a checkpoint that transformers writes when a job is ended
_TORCH_WRITER = ("inline_container", "PytorchStreamWriter", "iostream")  # torch.save says nothing of the disk


def require_writable(output_dir: str | Path) -> None:
    """Refuses a folder that nothing can be written to, before anything is trained.

    Raises:
        ConfigError: With the reason that the system gives; or a folder stands where the run writes a file.
    """
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise ConfigError(
            f"output_dir: {output_dir} cannot be written to: {error.strerror} -> choose another output_dir, or change "
            "its permissions"
        ) from error
    standing = [(name, "file") for name in (CONFIG, COMPONENTS, *FILES)]
    for name, wanted in [*standing, (SELECTIONS, "folder"), (REPLACED, "folder")]:
        path = Path(output_dir) / name
        if path.exists() and path.is_dir() != (wanted == "folder"):
            found = "folder" if path.is_dir() else "file"
            raise ConfigError(f"output_dir: {path} is a {found}, and the run writes a {wanted} there -> move it away")


def begin_writing(folder: str | Path) -> None:
    """Clears a folder that a checkpoint is about to be written to. On one rank, before any other writes.

    A folder of that name that is not ours is moved aside, with a warning: a run of hours does not end for it, and
    nothing of it is lost.
    """
    folder = Path(folder)
    if is_ours(folder):
        _delete(folder)
        return
    aside = move_aside(folder)
    if aside is not None:
        logger.warning("%s was not written by a dynamic run: moved to %s", folder, aside)


def is_ours(folder: str | Path) -> bool:
    """Returns whether a folder was written as a checkpoint of a dynamic run, whole or not."""
    folder = Path(folder)
    if folder.is_symlink() or not folder.is_dir():
        return False
    if any((folder / name).is_file() for name in (STATE, COMPLETE)):
        return True
    return all(
        path.name == _BEGUN or is_temporary(path) for path in folder.iterdir()
    )  # stopped before or while the first file was written


@contextmanager
def naming_write_errors(folder: str | Path, run: str | None = None) -> Iterator[None]:
    """Turns a failure to write a checkpoint into an error that says where, how much room there is, and what is left.

    Args:
        folder: The checkpoint.
        run: The run that writes it: a checkpoint of another run is not one to resume from.

    Raises:
        CheckpointError: With the original as its cause. What does not come from writing files passes unchanged.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(mark in str(error) for mark in _TORCH_WRITER):
            raise
        instead = newest_complete(Path(folder).parent, run)
        left = f"resuming continues from {instead}" if instead else "no earlier checkpoint is complete"
        raise CheckpointError(
            f"the checkpoint {folder} could not be written: {error} ({_free_space(Path(folder))}) -> free disk space "
            f"or choose another output_dir; {left}"
        ) from error


def _free_space(folder: Path) -> str:
    standing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return f"{shutil.disk_usage(standing).free / 2**20:.0f} MiB are free there"


def all_checkpoints(output_dir: str | Path) -> list[Path]:
    """Returns the folders that are named as checkpoints, whole or not, ours or not, by step."""
    found = [
        path for path in Path(output_dir).glob(f"{PREFIX}*") if re.fullmatch(f"{PREFIX}(0|[1-9][0-9]*)", path.name)
    ]
    return sorted((path for path in found if path.is_dir()), key=step_of)


def step_of(folder: str | Path) -> int:
    """Returns the global steps done at a checkpoint, from its name."""
    return int(Path(folder).name.removeprefix(PREFIX))


def newest_complete(output_dir: str | Path, run: str | None = None) -> str | None:
    """Returns the newest checkpoint that is whole, or None; names those it passes over.

    Args:
        output_dir: The run's folder.
        run: The run: the checkpoints of another one are passed over. None takes those of any.
    """
    for folder in reversed(all_checkpoints(output_dir)):
        reason = incompleteness(folder)
        if reason is not None:
            logger.warning("passing over the incomplete checkpoint %s: %s", folder, reason)
        elif run not in (None, run_of(folder)):
            logger.warning("passing over the checkpoint %s: run %s wrote it, this is %s", folder, run_of(folder), run)
        else:
            return str(folder)
    return None


def require_complete(folder: str | Path) -> None:
    """Refuses a checkpoint that was named by the user and is not whole.

    Raises:
        CheckpointError: With the reason, and the checkpoint to use instead.
    """
    reason = incompleteness(folder)
    ours = any((Path(folder) / name).exists() for name in (COMPLETE, STATE))
    if reason is None or not ours:
        return  # of a checkpoint that is not ours, loading the state says it better
    instead = newest_complete(Path(folder).parent)
    way_out = f"resume_from_checkpoint: {instead}" if instead else "leave resume_from_checkpoint out to start anew"
    raise CheckpointError(f"the checkpoint {folder} is incomplete: {reason} -> {way_out}")


def rotate(output_dir: str | Path, limit: int | None, best: str | None, written: str | Path) -> None:
    """Deletes checkpoints beyond ``limit``; never ``written``, which has just been made whole, nor the best.

    Incomplete ones go first, then those of later steps (of a continuation that was given up), then the oldest. Folders
    that a dynamic run did not write are neither counted nor deleted. On one rank.
    """
    checkpoints = [path for path in all_checkpoints(output_dir) if is_ours(path)]
    if not limit or limit < 0:
        return
    kept = [path for path in checkpoints if _same(path, written) or (best is not None and _same(path, best))]
    others = [path for path in checkpoints if path not in kept]
    others.sort(key=lambda path: (_seems_whole(path), step_of(path) < step_of(written), step_of(path)))
    for folder in others[: max(0, len(checkpoints) - max(limit, len(kept)))]:
        logger.debug("deleting the checkpoint %s, as save_total_limit is %d", folder, limit)
        try:
            _delete(folder)
        except OSError as error:  # no reason to stop a run: what is left of it is incomplete, and goes first next time
            logger.warning("the old checkpoint %s could not be deleted: %s", folder, error)


def _same(one: Path, other: str | Path) -> bool:
    return Path(other).exists() and one.samefile(other)


def _seems_whole(folder: Path) -> bool:
    return incompleteness(folder, contents=False) is None


def _delete(folder: Path) -> None:
    (folder / COMPLETE).unlink(missing_ok=True)  # first: a half-deleted checkpoint must not look whole
    for path in folder.iterdir():
        if path.name == STATE:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    (folder / STATE).unlink(missing_ok=True)  # last: by it a half-deleted checkpoint is known as ours
    folder.rmdir()
