"""Names of the files of a run, and writing them so that a reader never sees half of one."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONFIG = "dataflex_config.yaml"
COMPONENTS = "dataflex_components.yaml"
TRACE = "dataflex_trace.jsonl"
SELECTIONS = "dataflex_selections"
WHY = "dataflex_why.jsonl"
ROWS = "dataflex_rows.jsonl"
CACHE = "dataflex_cache"
STATE = "dataflex_state.pt"
COMPLETE = "dataflex_complete.json"
LOCK = "dataflex_lock.json"
REPLACED = "dataflex_replaced"
SCORES = "dataflex_scores.parquet"
RUN = "dataflex_run.json"
METRICS = "dataflex_metrics.jsonl"
SEGMENTS = "dataflex_segments.jsonl"
ROWS = "dataflex_rows.jsonl"
WHY = "dataflex_why.jsonl"
LAST_SCORES = "dataflex_last_scores.npz"
ROW_SOURCES = "dataflex_row_sources.npz"
SOURCES = "dataflex_sources.npz"
FINAL_WEIGHTS = "*_weights.json"
"""What a mixer that learns weights for another run leaves: ``proportions``, and over how many ``steps``."""
REPORT = "dataflex_report.html"


_TEMPORARY = re.compile(r"\..+\.\d+\.dataflex-tmp", re.DOTALL)  # by this name only ours are deleted


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success it takes the place of ``path`` at once.

    Args:
        path: The file.
        durable: Whether it does so on disk as well, which takes some milliseconds. A file that is written every second
            and without which a run can be resumed need not outlive the machine.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.dataflex-tmp")
    try:
        yield temporary
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Returns whether a file is one that :func:`replacing` was writing."""
    return _TEMPORARY.fullmatch(path.name) is not None and path.is_file()


def remove_unfinished(folder: Path) -> None:
    """Deletes what :func:`replacing` left in ``folder`` when its process was killed."""
    for path in folder.glob(".*"):
        if is_temporary(path):
            path.unlink(missing_ok=True)


def move_aside(path: Path) -> Path | None:
    """Moves what stands at ``path`` out of the way, to a name beside it that nothing has.

    Returns:
        Where it is now; None where there was nothing.
    """
    if not path.exists() and not path.is_symlink():
        return None
    names = (path.with_name(f"aside_{path.name}" + (f"-{i}" if i > 1 else "")) for i in itertools.count(1))
    free = next(name for name in names if not name.exists() and not name.is_symlink())
    path.rename(free)
    return free
