"""A run that has ended, made into one that was stopped before its end."""

from __future__ import annotations

from pathlib import Path

import yaml
from dataflex.config.resolved import RUN
from dataflex.core.files import CONFIG


def as_if_stopped(folder: Path) -> None:
    """Takes the end of the run out of its record; its last checkpoints are the test's to delete."""
    config = yaml.safe_load((folder / CONFIG).read_text())
    del config[RUN]["finished"]
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
