"""How a run of an experiment that was stopped goes on: from its newest checkpoint, else from its first step."""

from __future__ import annotations

import json
from pathlib import Path

from dataflex.experiments.planned_runs import NEW, STOPPED, TRAINER_STATE, PlannedRun, read_json

SIGNALS = (129, 130, 131, 143)
"""Exit codes of a run that ended by a signal which this process got: SIGHUP, SIGINT, SIGQUIT, SIGTERM."""


def going_on(run: PlannedRun, state: str) -> tuple[list[str], str]:
    """Returns the overrides with which a run goes on or starts anew, and that in words."""
    if state == NEW:
        return [], ""
    checkpoint = _checkpoint(run) if state == STOPPED else None
    if checkpoint is None:
        why = "it was stopped before a checkpoint" if state == STOPPED else "it was stopped while it was evaluated"
        return ["overwrite_output_dir=true"], f", again from its first step, as {why}"
    named = "true" if run.arm.spec.arguments.dynamic else json.dumps(str(checkpoint), ensure_ascii=False)
    return [f"resume_from_checkpoint={named}"], f", from {checkpoint.name}"


def _checkpoint(run: PlannedRun) -> Path | None:
    """Returns the checkpoint that a run goes on from; of a static run, one that its trainer has written to the end."""
    if run.arm.spec.arguments.dynamic:
        from dataflex.run.newest import newest_of_run  # here: it imports torch, and most comparisons are not taken up

        found = newest_of_run(run.folder)
        return None if found is None else Path(found)
    whole = [
        (int(path.name.removeprefix("checkpoint-")), path)
        for path in run.folder.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdecimal()
        and read_json(path / TRAINER_STATE).get("global_step") is not None
        and (path / "optimizer.pt").exists()
    ]
    return max(whole)[1] if whole else None
