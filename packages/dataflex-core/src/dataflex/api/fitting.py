"""What the arguments of a trainer must be for a run: looked at before the trainer loads a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from datasets import IterableDataset

from dataflex.api.run import CheckedRun
from dataflex.config.checks.known_component import held_out_idle, no_held_out, no_target
from dataflex.config.checks.stage_table import PROMPTS, unfit_parts
from dataflex.config.component_choice import SHORT_FORM
from dataflex.config.component_parameters import range_problems
from dataflex.core.errors import InvalidConfigError, Problem
from dataflex.objective.fused_head import require_weighable
from dataflex.planning.run_schedule import require_steps
from dataflex.trainer.engine import require_loader
from dataflex.trainer.rollouts import boundary_problems
from dataflex.upstream.online_trainers import Generation
from dataflex.utils.logging import logger

_GIVE_TARGET = "give eval_dataset, or target_dataset where they are other rows than those to evaluate on"
_GIVE_HELD_OUT = "give mixer_eval_dataset, a mapping from each source of train_dataset to its held-out rows"


def require_fitting(run: CheckedRun, given: Mapping[str, Any], stage: str | None = None) -> None:
    """Refuses arguments of a trainer that the run cannot start with.

    Args:
        run: The run.
        given: The arguments by their names.
        stage: The stage of a trainer whose rows are no texts; None for any other.

    Raises:
        ConfigError: Evaluation rows are missing that the component aims at, it was given parameters for other sources,
            or the training arguments ask for what a dynamic run does not do.
    """
    target = given.get("target_dataset") if given.get("eval_dataset") is None else given["eval_dataset"]
    held_out = given.get("mixer_eval_dataset") is not None or isinstance(given.get("eval_dataset"), Mapping)
    problems = [*no_target(run.known, target is not None, _GIVE_TARGET)]
    problems += no_held_out(run.known, held_out, _GIVE_HELD_OUT)
    problems += _sources(run, given.get("train_dataset"))
    problems += unfit_parts(stage or "sft", run.known)
    if stage in PROMPTS:
        problems += _prompts(run, given)
    if problems:
        raise InvalidConfigError(problems)
    if given.get("mixer_eval_dataset") is not None and (note := held_out_idle(run.known)):
        logger.warning(note)
    args, weighs = given.get("args"), run.spec.weighs
    if weighs and given.get("compute_loss_func") is not None:
        what = "computes the loss of a batch itself, so its samples cannot be weighed"
        raise InvalidConfigError([Problem("compute_loss_func", what, "leave it out, or take a selector or a mixer")])
    if args is not None:
        if weighs and stage is None:
            require_weighable(args, "a weighter")
        require_loader(args, run.spec.arguments.train_type, run.spec.plans)
        require_steps(run.spec, args)
        _tell_of_epochs(run, args)


def _prompts(run: CheckedRun, given: Mapping[str, Any]) -> list[Problem]:
    """Returns what is wrong with a run that plans the prompts of a trainer that samples answers."""
    args, rows = given.get("args"), given.get("train_dataset")
    parts = list(rows.values()) if isinstance(rows, Mapping) else [rows]
    if any(isinstance(part, IterableDataset) for part in parts):
        what = "is a stream, whose prompts cannot be told apart by a number"
        return [Problem("train_dataset", what, "give a datasets.Dataset, or train without dynamic()")]
    if args is None or not run.spec.plans:
        return []
    steps = run.spec.steps(args.max_steps, float(args.num_train_epochs))
    updates = 0 if not steps.decides else steps.update_times if steps.update_times in (0, 1) else 2
    return boundary_problems(Generation.of(args), steps.warmup_step, steps.update_step, updates)


def _sources(run: CheckedRun, dataset: Any) -> list[Problem]:
    """Returns what the components' constructors will say of parameters for the sources."""
    if not isinstance(dataset, Mapping):
        return []
    problems = []
    for known in run.known:
        if known.info is not None:
            place = "params" if known.where == SHORT_FORM.name else f"{known.where}.params"
            places = {name: (f"{place}.{name}", value) for name, value in known.part.component.params.items()}
            problems += range_problems(known.info, places, list(dataset))
    return problems


def _tell_of_epochs(run: CheckedRun, args: Any) -> None:
    """Says that epochs were given and the schedule is of another length: transformers does not tell who gave them."""
    default = next(key.default for key in fields(args) if key.name == "num_train_epochs")
    steps = run.spec.steps(args.max_steps, float(args.num_train_epochs))
    if args.num_train_epochs == default or steps.total is None:
        return
    logger.warning(
        "num_train_epochs: %g has no effect: the run is %d steps long by its schedule -> leave train_step, or "
        "update_step and update_times, out for a run of so many epochs",
        args.num_train_epochs, steps.total,
    )  # fmt: skip
