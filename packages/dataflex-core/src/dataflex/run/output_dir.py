"""Nothing the user had is overwritten: an output folder that holds another run is refused before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataflex.config.checks.parsed_config import named_checkpoint
from dataflex.config.resolved import NOTES, RecordedRun, recorded_run, resolved, written_config
from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError
from dataflex.core.files import COMPONENTS, STATE
from dataflex.run.checkpoints import all_checkpoints, require_complete, require_writable, run_of
from dataflex.run.identity import (
    LENGTH,
    TRAIN_DATASET,
    differences,
    identity_of_arguments,
    identity_of_rows,
    identity_of_run,
    require_same,
    settings,
)
from dataflex.run.lock import require_unlocked
from dataflex.run.newest import newest_of_run, newest_to_resume
from dataflex.run.run_length import finished_run
from dataflex.run.state import load_state
from dataflex.utils.logging import logger
from dataflex.utils.secret_values import without_secrets

FINISHED = "trainer_state.json"  # of a run of an earlier version: written into output_dir when training has ended


def resolve_resume(training_args: Any) -> None:
    """Replaces ``resume_from_checkpoint: true`` by the newest complete checkpoint of the run in ``output_dir``.

    A text that stands for no checkpoint becomes none.

    Raises:
        ConfigError: There is none.
    """
    named = named_checkpoint(training_args.resume_from_checkpoint)
    if named is True:
        folder = training_args.output_dir
        training_args.resume_from_checkpoint = newest_to_resume(folder, recorded_run(folder))
    elif not isinstance(named, str):
        training_args.resume_from_checkpoint = named


def require_free_output_dir(spec: RunSpec, training_args: Any) -> None:
    """Refuses to write over, or to continue, a run that was made with another configuration.

    Args:
        spec: The run.
        training_args: LLaMA-Factory's, after it has looked for a checkpoint to resume from.

    Raises:
        ConfigError: Another run is writing to the folder, or it cannot be written to; or naming the keys that differ,
            or that the run is finished. A run of the same configuration that was stopped before its first checkpoint is
            started anew.
    """
    folder, resumes = Path(training_args.output_dir), training_args.resume_from_checkpoint
    if training_args.should_save:
        require_writable(folder)
    if training_args.process_index == 0:  # the lock is taken when training begins
        require_unlocked(folder)
    if resumes and not (Path(resumes) / STATE).exists():
        raise ConfigError(
            f"output_dir: {folder} would be continued from {resumes}, which is not a checkpoint of a dynamic run (it "
            f"has no {STATE}) -> choose another output_dir, or set overwrite_output_dir: true to start anew"
        )
    named = _names_a_checkpoint(spec)
    if training_args.overwrite_output_dir and (named or not resumes):
        return
    recorded = recorded_run(folder)
    if not resumes:
        require_unused(spec, folder, recorded)
    elif recorded is not None:
        before, now = _configurations(spec, folder)
        _require_same_configuration(folder, before, now)
        if run_of(resumes) != recorded.id:
            raise ConfigError(
                f"output_dir: {folder} holds another run than the one that {resumes} is a checkpoint of -> choose "
                "another output_dir, or set overwrite_output_dir: true to replace it"
            )
        if not named:
            _require_work(folder, before, now, recorded)


def require_unused(spec: RunSpec, folder: str | Path, recorded: RecordedRun | None) -> None:
    """Refuses to start a run anew where another one would be written over.

    Args:
        spec: The run.
        folder: Its ``output_dir``.
        recorded: The run that is recorded there.

    Raises:
        ConfigError: The folder holds checkpoints, a finished run, one of another configuration, or one that was stopped
            and can be resumed.
    """
    folder = Path(folder)
    if recorded is None:
        if all_checkpoints(folder):
            raise ConfigError(
                f"output_dir: {folder} holds the checkpoints of another run -> choose another output_dir, or set "
                "overwrite_output_dir: true to replace them"
            )
        return
    before, now = _configurations(spec, folder)
    _require_same_configuration(folder, before, now)
    _require_work(folder, before, now, recorded)
    newest = newest_of_run(folder)
    if newest is not None:
        given = spec.llamafactory.get("resume_from_checkpoint")
        without = "without resume_from_checkpoint it" if given is None else f"resume_from_checkpoint: {given}"
        raise ConfigError(
            f"output_dir: {folder} holds a run that was stopped, and {without} would not go on from its {newest} -> "
            "set resume_from_checkpoint: true, or overwrite_output_dir: true to start anew (from Python: "
            "train(resume_from_checkpoint=True), or overwrite_output_dir=True for the trainer)"
        )
    logger.warning("%s holds a run that was stopped before its first complete checkpoint: starting it anew", folder)


def _configurations(spec: RunSpec, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return written_config(folder), resolved(spec, folder.absolute() / COMPONENTS)


def _require_same_configuration(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    kept = [
        settings({key: value for key, value in without_secrets(keys).items() if key not in NOTES})
        for keys in (before, now)
    ]
    lines = differences(kept[0], kept[1], "before")
    if lines:
        raise ConfigError(
            f"output_dir: {folder} holds a run with another configuration:\n  - "
            + "\n  - ".join(lines)
            + "\n-> choose another output_dir, restore the configuration, or set overwrite_output_dir: true to start "
            "anew (without resume_from_checkpoint: true)"
        )


def require_checkpoint_of_run(spec: RunSpec, training_args: Any) -> None:
    """Refuses a checkpoint that was made with another configuration, as the trainer would, before a model is loaded.

    Raises:
        CheckpointError: It is incomplete or unreadable, or naming the keys that differ.
    """
    folder = training_args.resume_from_checkpoint
    if not folder:
        return
    require_complete(folder)
    saved = load_state(folder)["identity"]
    seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
    arguments = {"arguments": identity_of_arguments(training_args.to_dict())}
    require_same(saved, {**saved, **identity_of_run(spec, int(seed)), **arguments}, folder)


def require_rows_of_checkpoint(dataset: Any, folder: str | None) -> None:
    """Refuses a checkpoint that was made with other rows, as the trainer would, before a model is loaded.

    Args:
        dataset: The train dataset.
        folder: The checkpoint to resume from, if any; it was found whole.

    Raises:
        CheckpointError: Naming the sources that differ.
    """
    if folder:
        saved = load_state(folder)["identity"]
        require_same(saved, {**saved, "data": identity_of_rows(TRAIN_DATASET, dataset)}, folder)


def _require_work(folder: Path, before: dict[str, Any], now: dict[str, Any], recorded: RecordedRun) -> None:
    """Refuses a finished run whose length is as it was; how much longer it is, the trainer finds out."""
    finished = recorded.finished is not None or (recorded.id is None and (folder / FINISHED).exists())
    if not finished:
        return
    longer = any(before.get(key) != now.get(key) for key in LENGTH)
    if not longer:
        raise finished_run(folder, recorded.finished)
    if newest_of_run(folder) is None:
        raise ConfigError(
            f"output_dir: {folder} holds a finished run without a checkpoint to continue from -> choose another "
            "output_dir, or set overwrite_output_dir: true to replace it"
        )


def _names_a_checkpoint(spec: RunSpec) -> bool:
    return isinstance(named_checkpoint(spec.llamafactory.get("resume_from_checkpoint")), str)
