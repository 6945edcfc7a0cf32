"""Everything that can be known about a run before a model is loaded. ``validate`` and ``train`` both come here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflex.config.checks.component import component_problems
from dataflex.config.checks.data import data_problems
from dataflex.config.checks.draft import Draft
from dataflex.config.checks.engine import engine_problems
from dataflex.config.checks.keys import parse_arguments, unknown_keys
from dataflex.config.checks.model import causal_problems
from dataflex.config.checks.notes import notes
from dataflex.config.checks.rows import row_problems
from dataflex.config.checks.schedule import STEP_KEYS, schedule_problems, with_max_steps
from dataflex.config.checks.streams import stream_problems
from dataflex.config.checks.values import value_problems
from dataflex.config.load import split
from dataflex.config.spec import RunSpec
from dataflex.core.errors import InvalidConfigError
from dataflex.utils.logging import logger

_DATA_KEYS = frozenset({"dataset", "eval_dataset", "dataset_dir", "tokenized_path", "streaming", "packing"})
_FOLLOWS = {
    "val_size": ("eval_dataset", "mixer_eval_dataset"),
    "eval_dataset": ("mixer_eval_dataset",),
    "stage": ("stage",),
}
"""A key with a wrong value -> keys that lack nothing but its right one."""


def check(config: Mapping[str, Any], folder: Path) -> RunSpec:
    """Returns the run that a configuration describes.

    ``components_cfg_file`` and ``plugins`` come back as absolute paths, ``max_steps`` as ``train_step``. The keys of
    LLaMA-Factory come back as they are. What is legal but has no effect is logged as a warning.

    Args:
        config: What :func:`dataflex.config.load.read_config` returned.
        folder: The folder of the file it came from, where paths of ours are looked for after the working directory.

    Raises:
        InvalidConfigError: Every problem that was found.
    """
    ours, theirs = split(config)
    arguments, problems = parse_arguments(ours, folder)
    written = frozenset(key for key, value in ours.items() if value is not None)
    wrong = frozenset(problem.where for problem in problems)
    values = value_problems(theirs, arguments.plugins)
    bad = {problem.where for problem in values}
    right = {key: value for key, value in theirs.items() if key not in bad}
    draft, more = with_max_steps(Draft(arguments, right, written, wrong))
    problems += [*unknown_keys(theirs), *values, *more]
    wrong_keys = {problem.where for problem in problems}
    if "train_type" not in wrong_keys:  # else nobody knows what the rest is meant for
        problems += schedule_problems(draft) if wrong_keys.isdisjoint(STEP_KEYS) else []
        found, component, info = component_problems(draft)
        found += [*engine_problems(draft), *stream_problems(draft, info), *causal_problems(draft.theirs, info)]
        problems += [p for p in found if p.where not in _told(bad)]
        found, rows = data_problems(draft) if bad.isdisjoint(_DATA_KEYS) else ([], {})
        problems += found
        if component is not None and not problems:
            problems += row_problems(draft, rows, component, info)
    if problems:
        raise InvalidConfigError(problems)
    for note in notes(draft, config):
        logger.warning(note)
    return RunSpec(draft.arguments, component, draft.theirs, draft.epochs)


def _told(bad: set[str]) -> set[str]:
    """Returns the keys of which nothing more is to be said."""
    return bad.union(*(_FOLLOWS.get(key, ()) for key in bad))
