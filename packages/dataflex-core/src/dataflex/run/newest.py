"""The checkpoint that a run in an output folder is resumed from: the newest complete one that the run itself wrote."""

from __future__ import annotations

from pathlib import Path

from dataflex.config.resolved import RecordedRun, recorded_run
from dataflex.core.errors import ConfigError
from dataflex.run.checkpoints import newest_complete


def newest_of_run(output_dir: str | Path) -> str | None:
    """Returns the newest complete checkpoint of the run that is recorded in a folder, or None.

    Raises:
        ConfigError: The record cannot be read.
    """
    return _newest(output_dir, recorded_run(output_dir))


def newest_to_resume(output_dir: str | Path, recorded: RecordedRun | None) -> str:
    """Returns what ``resume_from_checkpoint: true`` means.

    Args:
        output_dir: The run's folder.
        recorded: The run that is recorded there.

    Raises:
        ConfigError: There is none.
    """
    found = _newest(output_dir, recorded)
    if found is None:
        raise ConfigError(
            f"resume_from_checkpoint: true, but {output_dir} holds no complete checkpoint of its run -> leave it out"
        )
    return found


def _newest(output_dir: str | Path, recorded: RecordedRun | None) -> str | None:
    return newest_complete(output_dir, None if recorded is None else recorded.id)
