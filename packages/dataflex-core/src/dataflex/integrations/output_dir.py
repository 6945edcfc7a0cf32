"""Nothing the user had is overwritten: an output folder that holds another run is refused before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError
from dataflex.core.secret_values import without_secrets
from dataflex.run.checkpoints import all_checkpoints, newest_complete, require_writable
from dataflex.run.config_file import VERSIONS, resolved, written_config
from dataflex.run.files import COMPONENTS, CONFIG, STATE
from dataflex.utils.logging import logger

FINISHED = "trainer_state.json"  # written into output_dir itself when training has ended

# May change between a run and its continuation: where to resume, what to save and report, how the machine is used.
_FREE = {
    VERSIONS, "resume_from_checkpoint", "overwrite_output_dir", "overwrite_cache", "report_to", "run_name", "plot_loss",
    "disable_tqdm", "logging_steps", "logging_strategy", "logging_first_step", "save_steps", "save_strategy",
    "save_total_limit", "eval_steps", "eval_strategy", "preprocessing_num_workers", "dataloader_num_workers",
    "ddp_timeout", "deepspeed", "fsdp", "fsdp_config", "per_device_train_batch_size", "gradient_accumulation_steps",
    "per_device_eval_batch_size", "plugins",
}  # fmt: skip


def resolve_resume(training_args: Any) -> None:
    """Replaces ``resume_from_checkpoint: true`` by the newest complete checkpoint of ``output_dir``.

    Raises:
        ConfigError: There is none.
    """
    if str(training_args.resume_from_checkpoint).lower() != "true":  # the command line gives a text
        return
    training_args.resume_from_checkpoint = newest_complete(training_args.output_dir)
    if training_args.resume_from_checkpoint is None:
        raise ConfigError(
            f"resume_from_checkpoint: true, but {training_args.output_dir} holds no complete checkpoint -> leave it out"
        )


def require_free_output_dir(spec: RunSpec, training_args: Any) -> None:
    """Refuses to write over, or to continue, a run that was made with another configuration.

    Args:
        spec: The run.
        training_args: LLaMA-Factory's, after it has looked for a checkpoint to resume from.

    Raises:
        ConfigError: The folder cannot be written to; or naming the keys that differ, or that the run is finished. A
            run of the same configuration that was stopped before its first checkpoint is started anew.
    """
    folder = Path(training_args.output_dir)
    if training_args.should_save:
        require_writable(folder)
    resumes = training_args.resume_from_checkpoint
    if resumes and not (Path(resumes) / STATE).exists():
        raise ConfigError(
            f"output_dir: {folder} would be continued from {resumes}, which is not a checkpoint of a dynamic run (it "
            f"has no {STATE}) -> choose another output_dir, or set overwrite_output_dir: true to start anew"
        )
    if training_args.overwrite_output_dir:
        return
    if not (folder / CONFIG).exists():
        if all_checkpoints(folder) and not resumes:
            raise ConfigError(
                f"output_dir: {folder} holds the checkpoints of another run -> choose another output_dir, or set "
                "overwrite_output_dir: true to replace them"
            )
        return
    before = without_secrets(written_config(folder))
    now = without_secrets(resolved(spec, folder.absolute() / COMPONENTS))
    keys = sorted(k for k in {*before, *now} - _FREE if before.get(k) != now.get(k))
    if keys:
        differences = "\n".join(f"  - {k}: {before.get(k)} before, {now.get(k)} now" for k in keys)
        raise ConfigError(
            f"output_dir: {folder} holds a run with another configuration:\n{differences}\n-> choose another "
            "output_dir, restore the configuration, or set overwrite_output_dir: true to start anew"
        )
    if not resumes and (folder / FINISHED).exists():
        raise ConfigError(
            f"output_dir: {folder} holds another run, finished and without a checkpoint to continue from -> choose "
            "another output_dir, or set overwrite_output_dir: true to replace it"
        )
    if not resumes:
        logger.warning("%s holds a run that was stopped before its first complete checkpoint: starting it anew", folder)
