"""``streaming: true``: what can be done with rows that are read from the start and have no end that anybody knows.

``validate`` asks with the keys of a file, the trainers with the arguments that they were given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.config.arguments import COMPOSED, DataflexArguments
from dataflex.config.checks.parsed_config import Draft
from dataflex.core.errors import Problem
from dataflex.core.kinds import ORDER, SELECTOR, WEIGHTER, Kind
from dataflex.core.schedule import Steps

EPOCH_KEYS = ("eval_strategy", "save_strategy", "logging_strategy")
"""What may be asked for once an epoch."""

_BY_NUMBER = "{who} asks for rows by number, and a stream has neither numbers nor an end"
_REFUSED = {
    SELECTOR: _BY_NUMBER,
    ORDER: _BY_NUMBER,
    WEIGHTER: "a checkpoint of {who} knows its dataset by the number of rows, which a stream does not have",
}


def stream_problems(draft: Draft) -> list[Problem]:
    """Returns what is wrong where the data are to be streamed."""
    if not draft.dynamic or not draft.on("streaming"):
        return []
    refused = no_streams(draft.arguments)
    if refused:
        return refused
    problems = [*no_sizes(draft.arguments), *many_readers(draft.count("dataloader_num_workers", 0))]
    for info in draft.infos:
        problems += no_sizes_for(info.name) if info.constants.get("needs_sizes") else []
    return [*problems, *no_end(draft.steps)]


def no_streams(keys: DataflexArguments) -> list[Problem]:
    """Returns a problem for each axis of a run that cannot train on a stream."""
    return [
        Problem("streaming", _REFUSED[kind].format(who=_who(keys, kind)), "set streaming: false")
        for kind in keys.kinds
        if kind in _REFUSED
    ]


def _who(keys: DataflexArguments, kind: Kind) -> str:
    return f"a run with {kind.name}:" if keys.train_type == COMPOSED else f"train_type: {keys.train_type}"


def no_sizes(keys: DataflexArguments) -> list[Problem]:
    """Returns a problem where the initial proportions are those of the sizes of streams."""
    if not keys.starts_from_sizes:
        return []
    what = f"{keys.mixture_sample_rule} asks for the sizes of the sources, which streams do not have"
    return [Problem("mixture_sample_rule", what, "give init_mixture_proportions, or set mixture_sample_rule: uniform")]


def no_sizes_for(mixer: str) -> list[Problem]:
    """Returns the problem of a mixer that looks at the sizes of streams."""
    what = f"the mixer '{mixer}' asks for the sizes of the sources, which streams do not have"
    return [Problem("streaming", what, "set streaming: false, or use another mixer")]


def many_readers(workers: int) -> list[Problem]:
    """Returns a problem where more than one worker would each get a part of a stream."""
    if workers <= 1:
        return []
    what = f"found {workers}, but a stream is read in order, by one process"
    return [Problem("dataloader_num_workers", what, "set 1 to read beside the training, or 0")]


def no_end(steps: Steps) -> list[Problem]:
    """Returns a problem where the number of steps would be that of passes over a stream."""
    if steps.total is not None:
        return []
    what = "is missing, and a stream has no end that would give the number of steps"
    return [Problem("train_step", what, "give it, or update_step and update_times")]


def no_epoch(asked: Mapping[str, Any]) -> list[Problem]:
    """Returns a problem for each key that asks for something once an epoch where no stream says how long that is.

    Args:
        asked: The keys with their values; only :data:`EPOCH_KEYS` are looked at.
    """
    what = "is epoch, but a stream has no end that anybody knows, so there is no epoch"
    return [Problem(key, what, f"set {key}: steps") for key in EPOCH_KEYS if asked.get(key) == "epoch"]
