"""In which state a run is: under way, done, failed, or killed without a word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflex.config.resolved import RUN
from dataflex.core.files import LOCK
from dataflex.report.record_lines import mapping, objects, whole
from dataflex.report.wording import when
from dataflex.run.lock import is_held


def state_of(
    folder: Path, about: Mapping[str, Any], config: Mapping[str, Any], state: Mapping[str, Any], step: int
) -> tuple[str, str]:
    """Returns the state of a run, see :class:`~dataflex.report.run_data.RunData`, and a sentence about it.

    Args:
        folder: Its folder.
        about: ``dataflex_run.json``.
        config: ``dataflex_config.yaml``.
        state: ``trainer_state.json``.
        step: Steps done.
    """
    total = whole(about.get("total_steps")) or whole(state.get("max_steps"))
    of = f"step {step:,} of {total:,}" if total else f"step {step:,}"
    now, says = _now(folder, about, config, state, of)
    resumed = [whole(each.get("step")) for each in objects(about.get("starts"))[1:]]
    again = [f"{each:,}" for each in resumed if each is not None]
    return now, says + (f" It was resumed at step {' and '.join(again)}." if again else "")


def _now(
    folder: Path, about: Mapping[str, Any], config: Mapping[str, Any], state: Mapping[str, Any], of: str
) -> tuple[str, str]:
    said, held = about.get("status"), is_held(folder)
    updated = f", {when(about.get('updated'))}" if about.get("updated") else ""
    match said:
        case "finished":
            return "finished", f"Finished at {of}{updated}."
        case "stopped":
            return "stopped", f"Stopped at {of}{updated}; it can be resumed from its last checkpoint."
        case "failed":
            error = str(about.get("error") or "no message was recorded").rstrip(". ")
            return "failed", f"Failed at {of}{updated}: {error}."
        case "running" if held:
            return "running", f"Under way: {of}{updated}. The page shows what was there when it was made."
        case "running" if held is None:
            return "unknown", f"Under way when it last wrote, at {of}{updated}; {LOCK} is of another machine."
        case "running":
            return "killed", f"Killed at {of}{updated}: it wrote no end, and no process holds its folder."
    finished = whole(mapping(config.get(RUN)).get("finished"))
    if held:
        return "running", f"Under way: {of}. The page shows what was there when it was made."
    if finished is not None or (folder / "trainer_state.json").is_file():
        return "finished", f"Finished at {of}."
    return "unfinished", f"Not finished: its last word is of {of}."
