"""What a replaced run leaves behind is moved aside, so that nothing of it passes for the run that takes its place."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from dataflex.config.resolved import RecordedRun
from dataflex.core.errors import ConfigError
from dataflex.core.files import COMPONENTS, CONFIG, REPLACED, REPORT, SELECTIONS
from dataflex.run.checkpoints import all_checkpoints, incompleteness, is_ours, run_of, step_of
from dataflex.run.record_files import FILES
from dataflex.utils.logging import logger

EARLIER = "before"  # begins the name of the folder of a run that had no id


def set_aside(output_dir: str | Path, recorded: RecordedRun | None, run: str, anew: bool) -> None:
    """Moves what another run left in the folder to ``dataflex_replaced``, if it left more than a beginning.

    Only what carries our mark is moved: checkpoints, the record, and the files that were saved as results and have not
    changed since. Called on one rank, before the run writes anything.

    Args:
        output_dir: The folder.
        recorded: The run that is recorded there, where that is known.
        run: The run that begins or goes on there.
        anew: Whether it begins.
    """
    folder = Path(output_dir)
    if not (anew if recorded is None else recorded.id != run):
        return
    checkpoints, results = list(_checkpoints(folder, run)), list(_results(folder, recorded))
    if not results and all(incompleteness(path, contents=False) for path in checkpoints):
        return  # it was stopped before its first checkpoint; the new run writes over what there is
    name = recorded.id if recorded is not None and recorded.id is not None else f"{EARLIER}-{time.strftime('%Y%m%d')}"
    aside = folder / REPLACED / name
    _move([*checkpoints, *results, *_record(folder)], folder, aside)
    logger.warning(
        "%s held another run: its checkpoints, record and results were moved to %s, which can be deleted", folder, aside
    )


def set_later_aside(output_dir: str | Path, run: str, step: int) -> None:
    """Moves the checkpoints aside that a run wrote after the step it goes on from: it takes another way from there.

    Called on one rank, before the run writes anything.

    Args:
        output_dir: The run's folder.
        run: The run.
        step: Global steps done.
    """
    folder = Path(output_dir)
    whole = [path for path in all_checkpoints(folder) if step_of(path) > step and is_ours(path)]
    later = [path for path in whole if run_of(path) == run and incompleteness(path, contents=False) is None]
    if later:
        aside = folder / REPLACED / f"{run}-after-{step}"
        _move(later, folder, aside)
        logger.warning("%s goes on from step %d: its later checkpoints were moved to %s", folder, step, aside)


def _move(paths: Iterable[Path], folder: Path, aside: Path) -> None:
    """Moves files and folders into ``aside``; none takes the place of another.

    Raises:
        ConfigError: One cannot be moved.
    """
    try:
        for path in paths:
            target = _free(aside / path.relative_to(folder))
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    except OSError as error:
        raise ConfigError(
            f"output_dir: what another run left in {folder} cannot be moved to {aside}: {error} -> choose another "
            "output_dir, or make room there"
        ) from error


def _checkpoints(folder: Path, run: str) -> Iterator[Path]:
    return (path for path in all_checkpoints(folder) if is_ours(path) and run_of(path) != run)


def _results(folder: Path, recorded: RecordedRun | None) -> Iterator[Path]:
    for name, known in {} if recorded is None else recorded.files.items():
        path = folder / name
        if path.is_file() and not path.is_symlink() and (path.stat().st_size, path.stat().st_mtime_ns) == known:
            yield path


def _record(folder: Path) -> Iterator[Path]:
    """The files of the record; the configuration last, as by it the others are known."""
    yield from sorted((folder / SELECTIONS).glob("step_" + "[0-9]" * 8 + ".npz"))
    yield from (folder / name for name in (*FILES, REPORT, COMPONENTS, CONFIG) if (folder / name).is_file())


def _free(path: Path) -> Path:
    names = (path if i == 1 else path.with_name(f"{path.name}.{i}") for i in itertools.count(1))
    return next(name for name in names if not name.exists())
