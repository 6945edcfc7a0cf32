"""``streaming: true``: what can be done with rows that are read from the start and have no end that anybody knows."""

from __future__ import annotations

from dataflex.config.checks.draft import Draft
from dataflex.core.catalog import ComponentInfo
from dataflex.core.errors import Problem

_REFUSED = {
    "dynamic_select": "train_type: dynamic_select asks for rows by number, and a stream has neither numbers nor an end",
    "dynamic_weight": (
        "a checkpoint of train_type: dynamic_weight knows its dataset by the number of rows, which a stream has not"
    ),
}


def stream_problems(draft: Draft, mixer: ComponentInfo | None) -> list[Problem]:
    """Returns what is wrong where the data are to be streamed.

    Args:
        draft: The configuration.
        mixer: What is known about the component.
    """
    if draft.kind is None or not draft.on("streaming"):
        return []
    refused = _REFUSED.get(draft.arguments.train_type)
    if refused:
        return [Problem("streaming", refused, "set streaming: false")]
    return [*_sizes(draft, mixer), *_workers(draft), *_steps(draft)]


def _sizes(draft: Draft, mixer: ComponentInfo | None) -> list[Problem]:
    problems = []
    if draft.arguments.starts_from_sizes:
        what = f"{draft.arguments.mixture_sample_rule} asks for the sizes of the sources, which streams do not have"
        way_out = "give init_mixture_proportions, or set mixture_sample_rule: uniform"
        problems.append(Problem("mixture_sample_rule", what, way_out))
    if mixer is not None and mixer.constants.get("needs_sizes"):
        what = f"the mixer '{mixer.name}' asks for the sizes of the sources, which streams do not have"
        problems.append(Problem("streaming", what, "set streaming: false, or use another mixer"))
    return problems


def _workers(draft: Draft) -> list[Problem]:
    found = draft.count("dataloader_num_workers", 0)
    if found <= 1:
        return []
    what = f"found {found}, but a stream is read in order, by one process"
    return [Problem("dataloader_num_workers", what, "set 1 to read beside the training, or 0")]


def _steps(draft: Draft) -> list[Problem]:
    keys = draft.arguments
    if keys.train_step or (keys.update_times >= 0 and keys.warmup_step + keys.update_step * keys.update_times):
        return []
    what = "is missing, and a stream has no end that would give the number of steps"
    return [Problem("train_step", what, "give it, or update_step and update_times")]
