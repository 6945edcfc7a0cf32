"""The lines that a run has logged: losses and learning rates, by step, from whichever file holds them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflex.core.files import METRICS
from dataflex.report.record_lines import Say, objects, read_lines, read_object, whole

STATE, LOG = "trainer_state.json", "trainer_log.jsonl"
_CHECKPOINT = re.compile("checkpoint-([0-9]+)")


def newest_state(folder: Path) -> dict[str, Any] | None:
    """Returns the ``trainer_state.json`` of a run, or of its last checkpoint; None where there is none."""
    steps = [
        (int(named[1]), path) for path in folder.glob("checkpoint-*") if (named := _CHECKPOINT.fullmatch(path.name))
    ]
    for path in [folder, *(path for _, path in sorted(steps, reverse=True))]:
        if (path / STATE).is_file():
            return read_object(path / STATE, lambda sentence: None)
    return None


def log_lines(folder: Path, state: Mapping[str, Any], say: Say) -> tuple[dict[str, Any], ...]:
    """Returns the lines in the order of their steps, each with a ``step``.

    Args:
        folder: The run's folder.
        state: What :func:`newest_state` has returned, for a run that wrote no metrics of its own.
        say: Called with a sentence about a file that cannot be read.
    """
    lines = [line for line in read_lines(folder / METRICS, say) if whole(line.get("step")) is not None]
    if not lines:
        lines = [line for line in objects(state.get("log_history")) if whole(line.get("step")) is not None]
    if not lines:
        read = read_lines(folder / LOG, say)
        lines = [line | {"step": step} for line in read if (step := whole(line.get("current_steps"))) is not None]
    return tuple(sorted(lines, key=lambda line: int(line["step"])))
