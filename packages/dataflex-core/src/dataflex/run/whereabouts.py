"""The last line of a run: where its record is. Also after an error, as what was done until then is in the record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dataflex.core.files import CONFIG, SELECTIONS, TRACE
from dataflex.utils.logging import logger

_Standing = tuple[int, int] | None


@contextmanager
def saying_where(output_dir: Any) -> Iterator[None]:
    """Logs, when the block is left in whatever way, where the record of the run is that began in it.

    A run that was refused before training began has no record, and what another run has left in the folder is not its
    own: every run writes its configuration anew when training begins, and by that the two are told apart. Heard on rank
    0 alone, like every line of the log.

    Args:
        output_dir: The run's folder, as it is written in the configuration.
    """
    if not isinstance(output_dir, str) or not output_dir:
        yield
        return
    folder = Path(output_dir).absolute()
    before = _standing(folder)
    try:
        yield
    finally:
        after = _standing(folder)
        if after is not None and after != before:
            logger.info("the record of this run is in %s: %s", folder, ", ".join(_held(folder)))


def _standing(folder: Path) -> _Standing:
    """Returns what tells one writing of the configuration from another; None where there is none."""
    try:
        found = (folder / CONFIG).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _held(folder: Path) -> Iterator[str]:
    """Yields the parts of the record that hold anything."""
    yield CONFIG
    if (folder / TRACE).is_file() and (folder / TRACE).stat().st_size:
        yield TRACE
    if (folder / SELECTIONS).is_dir() and any((folder / SELECTIONS).iterdir()):
        yield f"{SELECTIONS}/"
