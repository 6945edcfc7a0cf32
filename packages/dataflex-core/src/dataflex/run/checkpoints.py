"""Checkpoints that are whole or passed over.

A checkpoint folder is written by several ranks, file after file, and a run may be killed in between. So the last thing
written is a list of its files with their sizes; a folder is complete exactly when that list is there and holds. The
list is removed before anything in the folder is touched again, and older checkpoints are deleted only after it is
written: at every moment the newest complete checkpoint can be resumed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from dataflex.core.errors import CheckpointError, ConfigError
from dataflex.run.files import COMPLETE, STATE, replacing
from dataflex.utils.logging import logger

PREFIX = "checkpoint-"
_TORCH_WRITER = ("inline_container", "PytorchStreamWriter", "iostream")  # torch.save says nothing of the disk


def require_writable(output_dir: str | Path) -> None:
    """Refuses a folder that nothing can be written to, before anything is trained.

    Raises:
        ConfigError: With the reason that the system gives.
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


def begin_writing(folder: str | Path) -> None:
    """Clears a folder that a checkpoint is about to be written to. On one rank, before any other writes."""
    _delete(Path(folder))


@contextmanager
def naming_write_errors(folder: str | Path) -> Iterator[None]:
    """Turns a failure to write a checkpoint into an error that says where, how much room there is, and what is left.

    Raises:
        CheckpointError: With the original as its cause. What does not come from writing files passes unchanged.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(mark in str(error) for mark in _TORCH_WRITER):
            raise
        instead = newest_complete(Path(folder).parent)
        left = f"resuming continues from {instead}" if instead else "no earlier checkpoint is complete"
        raise CheckpointError(
            f"the checkpoint {folder} could not be written: {error} ({_free_space(Path(folder))}) -> free disk space "
            f"or choose another output_dir; {left}"
        ) from error


def _free_space(folder: Path) -> str:
    standing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return f"{shutil.disk_usage(standing).free / 2**20:.0f} MiB are free there"


def mark_complete(folder: str | Path) -> None:
    """Declares a checkpoint whole as it stands. On one rank, after every rank has written; it may be called again."""
    folder = Path(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / COMPLETE]
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    with replacing(folder / COMPLETE) as temporary:
        temporary.write_text(json.dumps({"files": sizes}, indent=1), encoding="utf-8")


def incompleteness(folder: str | Path) -> str | None:
    """Returns why a checkpoint cannot be used, or None where it is whole."""
    folder = Path(folder)
    try:
        sizes = dict(json.loads((folder / COMPLETE).read_text(encoding="utf-8"))["files"])
    except FileNotFoundError:
        return f"{COMPLETE} is missing: the run was stopped while it was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{COMPLETE} cannot be read: {error}"
    for name, size in sizes.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def all_checkpoints(output_dir: str | Path) -> list[Path]:
    """Returns the checkpoint folders of a run, complete or not, by step."""
    found = [path for path in Path(output_dir).glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted((path for path in found if path.is_dir()), key=step_of)


def step_of(folder: str | Path) -> int:
    """Returns the global steps done at a checkpoint, from its name."""
    return int(Path(folder).name.removeprefix(PREFIX))


def newest_complete(output_dir: str | Path) -> str | None:
    """Returns the newest checkpoint that is whole, or None; names those it passes over."""
    for folder in reversed(all_checkpoints(output_dir)):
        reason = incompleteness(folder)
        if reason is None:
            return str(folder)
        logger.warning("passing over the incomplete checkpoint %s: %s", folder, reason)
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

    Incomplete ones go first, then those of later steps (of a continuation that was given up), then the oldest. On one
    rank.
    """
    checkpoints = all_checkpoints(output_dir)
    if not limit or limit < 0:
        return
    kept = [path for path in checkpoints if _same(path, written) or (best is not None and _same(path, best))]
    others = [path for path in checkpoints if path not in kept]
    others.sort(key=lambda path: (incompleteness(path) is None, step_of(path) < step_of(written), step_of(path)))
    for folder in others[: max(0, len(checkpoints) - max(limit, len(kept)))]:
        logger.info("deleting the checkpoint %s, as save_total_limit is %d", folder, limit)
        try:
            _delete(folder)
        except OSError as error:  # no reason to stop a run: what is left of it is incomplete, and goes first next time
            logger.warning("the old checkpoint %s could not be deleted: %s", folder, error)


def _same(one: Path, other: str | Path) -> bool:
    return Path(other).exists() and one.samefile(other)


def _delete(folder: Path) -> None:
    (folder / COMPLETE).unlink(missing_ok=True)  # first: a half-deleted checkpoint must not look whole
    if folder.exists():
        shutil.rmtree(folder)
