"""The target of selection: the evaluation set or sets of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.core.errors import Problem
from dataflex.scoring import TargetSet


def target_sets(eval_dataset: Any) -> dict[str, Any]:
    """Returns name -> tokenised dataset; a single one is called ``eval``, and None gives no set at all."""
    if eval_dataset is None:
        return {}
    return dict(eval_dataset) if isinstance(eval_dataset, Mapping) else {"eval": eval_dataset}


def loss_targets(eval_dataset: Any) -> list[TargetSet]:
    """Returns the sets of :func:`target_sets` as what gradients are compared with, each row by itself."""
    return [TargetSet(name, rows) for name, rows in target_sets(eval_dataset).items()]


def has_target(eval_dataset: Any) -> Problem | None:
    """Returns a problem unless there is an evaluation set and none of them is empty."""
    sets = target_sets(eval_dataset)
    if sets and all(len(rows) for rows in sets.values()):
        return None
    empty = ", ".join(repr(name) for name, rows in sets.items() if not len(rows))
    found = f"the evaluation set {empty} has no rows" if empty else "the run has no evaluation set"
    return Problem(
        "eval_dataset",
        f"{found}, and its rows are what this selector aims at",
        "set eval_dataset, or val_size to hold rows out of the train dataset",
    )
