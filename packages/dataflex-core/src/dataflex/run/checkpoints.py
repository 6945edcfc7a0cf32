"""Checkpoints that are whole or passed over.

A checkpoint folder is written by several ranks, file after file, and a run may be killed in between. So the last thing
written is a list of its files with their sizes; a folder is complete exactly when that list is there and holds. The
list is removed before anything in the folder is touched again, and older checkpoints are deleted only after it is
written: at every moment the newest complete checkpoint can be resumed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from dataflex.core.errors import CheckpointError
from dataflex.run.files import COMPLETE, STATE, replacing
from dataflex.utils.logging import logger

PREFIX = "checkpoint-"


def begin_writing(folder: str | Path) -> None:
    """Clears a folder that a checkpoint is about to be written to. On one rank, before any other writes."""
    _delete(Path(folder))


def mark_complete(folder: str | Path) -> None:
    """Declares a checkpoint whole. On one rank, after every rank has written."""
    folder = Path(folder)
    sizes = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    with replacing(folder / COMPLETE) as temporary:
        temporary.write_text(json.dumps({"files": sizes}, indent=1), encoding="utf-8")


def incompleteness(folder: str | Path) -> str | None:
    """Returns why a checkpoint cannot be used, or None where it is whole."""
    folder = Path(folder)
    try:
        sizes = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"{COMPLETE} is missing: the run was stopped while it was written"
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
    if reason is None or not (Path(folder) / STATE).exists():
        return  # without our state it is no checkpoint of ours, which loading the state says better
    instead = newest_complete(Path(folder).parent)
    way_out = f"resume_from_checkpoint: {instead}" if instead else "leave resume_from_checkpoint out to start anew"
    raise CheckpointError(f"the checkpoint {folder} is incomplete: {reason} -> {way_out}")


def rotate(output_dir: str | Path, limit: int | None, best: str | None) -> None:
    """Deletes the oldest checkpoints beyond ``limit``; never the newest, nor the best. On one rank."""
    checkpoints = all_checkpoints(output_dir)
    if not limit or limit < 0 or not checkpoints:
        return
    kept = {checkpoints[-1]} | {path for path in checkpoints if best is not None and path.samefile(best)}
    excess = len(checkpoints) - max(limit, len(kept))
    for folder in [path for path in checkpoints if path not in kept][: max(0, excess)]:
        logger.info("deleting the checkpoint %s, as save_total_limit is %d", folder, limit)
        _delete(folder)


def _delete(folder: Path) -> None:
    (folder / COMPLETE).unlink(missing_ok=True)  # first: a half-deleted checkpoint must not look whole
    if folder.exists():
        shutil.rmtree(folder)
