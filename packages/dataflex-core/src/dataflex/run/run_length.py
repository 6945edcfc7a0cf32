"""How far a run has come and how long it is to be: what may be continued, and what is done already.

A run is continued by making it longer (``train_step``, ``update_times``, ``num_train_epochs``). What it has done does
not change by that: up to the step of the checkpoint, the segments of the longer schedule are those of the shorter one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.config.resolved import RecordedRun
from dataflex.core.errors import CheckpointError, ConfigError
from dataflex.core.schedule import Schedule


def require_continues(saved: Mapping[str, Any], now: Schedule, step: int, folder: object) -> None:
    """Refuses a schedule that is not the saved one, made as long or longer.

    Args:
        saved: The fields of the schedule that the checkpoint was saved in.
        now: The schedule of the present run.
        step: Global steps done at the checkpoint.
        folder: The checkpoint, for the message.

    Raises:
        CheckpointError: The run would be shorter, or other segments would lie before the step.
    """
    before = Schedule(**saved)
    require_no_shorter(before.total, now.total, step, folder)
    named = [("warmup_step", before.warmup, now.warmup)]
    if before.updates_per_cycle != 0 or now.updates_per_cycle != 0:
        named.append(("update_step", before.interval, now.interval))
    found = [f"{key}: {old} in the checkpoint, {new} now" for key, old, new in named if old != new]
    done = 0
    while done < step and not found:
        old, new = before.segment_at(done), now.segment_at(done)
        grown = old.stop == before.total and new.stop >= old.stop
        if (old.start, old.update) != (new.start, new.update) or not (old.stop == new.stop or grown):
            found.append(
                f"update_times, train_step or num_train_epochs: the steps {old.start} to {old.stop} were one segment, "
                f"and now one goes from {new.start} to {new.stop}"
            )
        done = old.stop
    if found:
        raise CheckpointError(
            f"{folder} belongs to another run:\n  - "
            + "\n  - ".join(found)
            + f"\n-> restore them: what was done up to step {step} stays, and a run is continued by more updates or "
            "steps after it"
        )


def require_no_shorter(before: int, now: int, step: int, folder: object) -> None:
    """Refuses to continue a run with fewer steps than it was begun with.

    Raises:
        CheckpointError: Naming both lengths.
    """
    if now < before:
        raise CheckpointError(
            f"{folder} is of a run of {before} steps and has done {step} of them, and the run that would continue it "
            f"has {now} (train_step, update_times, num_train_epochs) -> give {before} steps or more"
        )


def require_unfinished(recorded: RecordedRun | None, run: str, total: int, output_dir: object) -> None:
    """Refuses to train a finished run again.

    Args:
        recorded: The run in the output folder.
        run: The run that would go on there.
        total: Steps that it has now.
        output_dir: The folder, for the message.

    Raises:
        ConfigError: It is finished, and not to be longer.
    """
    if recorded is not None and recorded.id == run and recorded.finished is not None and total <= recorded.finished:
        raise finished_run(output_dir, recorded.finished)


def finished_run(output_dir: object, steps: int | None) -> ConfigError:
    """Returns the refusal of a finished run; of one of an earlier version, the steps are not known."""
    of = "" if steps is None else f" of {steps} steps"
    return ConfigError(
        f"output_dir: {output_dir} holds a finished run{of} -> choose another output_dir, or set "
        "overwrite_output_dir: true to replace it; a larger train_step or update_times continues it"
    )
