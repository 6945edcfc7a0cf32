"""Everything that can be known about a run before a model is loaded. ``validate`` and ``train`` both come here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflex.config.arguments import COMPOSED, DataflexArguments
from dataflex.config.checks.combination import combination_problems
from dataflex.config.checks.datasets import data_problems
from dataflex.config.checks.engine_limits import engine_problems
from dataflex.config.checks.enough_rows import row_problems
from dataflex.config.checks.keys import parse_arguments, unknown_keys
from dataflex.config.checks.known_component import component_problems
from dataflex.config.checks.mixer_losses import mixer_loss_problems
from dataflex.config.checks.model_folders import causal_problems
from dataflex.config.checks.parsed_config import Draft
from dataflex.config.checks.source_keys import source_problems
from dataflex.config.checks.steps import STEP_KEYS, schedule_problems, with_max_steps
from dataflex.config.checks.streaming import stream_problems
from dataflex.config.checks.values import value_problems
from dataflex.config.checks.warnings import notes
from dataflex.config.known_keys import handed_on, next_trainer_trains
from dataflex.config.lego import read_pipeline
from dataflex.config.load import split
from dataflex.config.moved.moved_keys import read_keys
from dataflex.config.spec import RunSpec
from dataflex.core.errors import InvalidConfigError, Problem
from dataflex.discovery.installed import has_package
from dataflex.utils.logging import logger

_DATA_KEYS = frozenset({"dataset", "eval_dataset", "dataset_dir", "tokenized_path", "streaming", "packing"})
_FOLLOWS = {
    "val_size": ("eval_dataset", "mixer_eval_dataset"),
    "eval_dataset": ("mixer_eval_dataset",),
    "stage": ("stage",),
}
"""A key with a wrong value -> keys that lack nothing but its right one."""


def check(config: Mapping[str, Any], folder: Path, *, trains: bool = True) -> RunSpec:
    """Returns the run that a configuration describes.

    ``components_cfg_file`` and ``plugins`` come back as absolute paths, ``max_steps`` as ``train_step``. The keys of
    LLaMA-Factory come back as they are. What is legal but has no effect is logged as a warning.

    Args:
        config: What :func:`dataflex.config.load.read_config` returned.
        folder: The folder of the file it came from, where paths of ours are looked for after the working directory.
        trains: Whether the rows are to be trained on, not only scored.

    Raises:
        InvalidConfigError: Every problem that was found.
    """
    moved = read_keys(*split(config))
    ours, theirs = moved.ours, moved.theirs
    ours, instead = read_pipeline(ours, folder)
    arguments, problems = parse_arguments(ours, folder)
    problems += moved.problems
    if handed_on(arguments.train_type):  # to a trainer with other keys, which checks them itself
        return _handed_on(arguments, theirs, problems)
    written = frozenset(key for key, value in ours.items() if value is not None)
    wrong = frozenset(problem.where for problem in problems)
    values = value_problems(theirs, arguments.plugins)
    bad = {problem.where for problem in values}
    right = {key: value for key, value in theirs.items() if key not in bad}
    draft, more = with_max_steps(Draft(arguments, right, written, wrong))
    problems += [*unknown_keys(theirs), *values, *more]
    wrong_keys = {problem.where for problem in problems}
    if "train_type" not in wrong_keys:  # else nobody knows what the rest is meant for
        found, draft = component_problems(draft)
        problems += schedule_problems(draft) if wrong_keys.isdisjoint(STEP_KEYS) else []
        found += [*combination_problems(draft), *engine_problems(draft), *stream_problems(draft)]
        found += [*source_problems(draft), *mixer_loss_problems(draft)]
        found += causal_problems(draft.theirs, draft.infos)
        problems += [p for p in found if p.where not in _told(bad)]
        found, rows = data_problems(draft) if bad.isdisjoint(_DATA_KEYS) else ([], {})
        problems += found
        if trains and not problems:
            problems += row_problems(draft, rows)
    if problems:
        raise InvalidConfigError([*problems, *instead])
    for note in moved.notes:
        logger.info(note)
    for note in notes(draft, config):
        logger.warning(note)
    return run_spec(draft, trains)


def run_spec(draft: Draft, trains: bool = True) -> RunSpec:
    """Returns the run of a draft without problems: its component under a short form, else its parts."""
    composed = draft.arguments.train_type == COMPOSED
    component = None if composed or not draft.axes else draft.axes[0].component
    parts = draft.axes if composed else ()
    return RunSpec(draft.arguments, component, draft.theirs, draft.epochs, trains, parts)


def _handed_on(arguments: DataflexArguments, theirs: Mapping[str, Any], problems: list[Problem]) -> RunSpec:
    """Returns a static run of LLaMA-Factory's next trainer, which imports no plugin files."""
    if arguments.plugins:
        what = "USE_V1=1 leaves the run to LLaMA-Factory's next trainer, which imports none"
        problems = [*problems, Problem("plugins", what, "remove it")]
    if has_package("llamafactory") and not next_trainer_trains():
        what = (
            "the next trainer of the installed LLaMA-Factory has no command train, and would exit as if it had trained"
        )
        problems = [*problems, Problem("USE_V1", what, "unset it, or install llamafactory 0.9.5")]
    if problems:
        raise InvalidConfigError(problems)
    return RunSpec(arguments, None, theirs, None)


def _told(bad: set[str]) -> set[str]:
    """Returns the keys of which nothing more is to be said."""
    return bad.union(*(_FOLLOWS.get(key, ()) for key in bad))
