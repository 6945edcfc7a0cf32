"""Tasks that rows are judged by: one for each evaluation set, for each part of one, or for each group of several.

Letters: N rows, J evaluation sets, K tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from dataflex.core.errors import Problem, listed, nearest
from dataflex.core.parameter_checks import is_number
from dataflex.scoring.target_rows import UsableRows, named_sets, number_in_set
from numpy.typing import NDArray


def boundaries_problem(found: Any) -> Problem | None:
    """Returns a problem unless ``found`` is None or a list of sizes, each at least 1."""
    fits = isinstance(found, list | tuple) and all(
        is_number(size) and isinstance(size, int) and size >= 1 for size in found
    )
    if found is None or (fits and found):
        return None
    way_out = "give the number of rows of each task, in the order of the evaluation set"
    return Problem(
        "task_boundaries", f"found {found!r}, allowed: a list of whole numbers of at least 1, or null", way_out
    )


def rows_problem(boundaries: Any, eval_dataset: Any) -> Problem | None:
    """Returns a problem where sizes of tasks do not fit the evaluation set: one set, with that many rows."""
    sets = named_sets(eval_dataset)
    if not boundaries or not sets or boundaries_problem(boundaries) is not None:
        return None
    if len(sets) > 1:
        what = f"they are sizes of parts of one evaluation set, and there are {len(sets)}: {listed(sets)}"
        return Problem("task_boundaries", what, "leave it out: each set is a task; or eval_on_each_dataset: false")
    (name, dataset), whole = next(iter(sets.items())), sum(boundaries)
    if dataset is None or len(dataset) == whole:
        return None
    what = f"the sizes sum to {whole}, and the evaluation set '{name}' has {len(dataset)} rows"
    return Problem("task_boundaries", what, f"give sizes that sum to {len(dataset)}, or null for a single task")


def groups_problem(groups: Any, sets: Sequence[str] | None = None) -> Problem | None:
    """Returns a problem unless groups are None, or name -> sets that belong together, no set twice.

    Args:
        groups: The user's.
        sets: The names of the evaluation sets; None where they are not known.
    """
    if groups is None:
        return None
    fits = isinstance(groups, Mapping) and all(
        isinstance(own, list | tuple) and own and all(isinstance(name, str) for name in own) for own in groups.values()
    )
    if not fits or not groups:
        what = f"found {groups!r}, allowed: a mapping from the name of a task to a list of evaluation sets, or null"
        return Problem("task_groups", what, "such as {mme: [mme_count, mme_colour]}")
    named = [name for own in groups.values() for name in own]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        return Problem("task_groups", f"{listed(twice)} stands there twice", "a set belongs to one task")
    unknown = [name for name in named if sets is not None and name not in sets]
    if not unknown or sets is None:
        return None
    what = f"found {listed(unknown)}, allowed: the names of the evaluation sets, {listed(sets)}"
    return Problem("task_groups", what, nearest(unknown[0], sets) or "eval_on_each_dataset: true keeps sets apart")


def split(sets: Mapping[str, Any], boundaries: Sequence[int] | None) -> dict[str, Any]:
    """Returns the evaluation sets, or the parts of the only one: name -> rows, ``task 0`` being the first.

    Args:
        sets: As :func:`~dataflex.scoring.read_target` gives them, without rows that have no label.
        boundaries: Rows of each part, as the set was given; None: it is not cut.
    """
    if not boundaries:
        return dict(sets)
    dataset = next(iter(sets.values()))
    number_M = np.array([number_in_set(dataset, row) for row in range(len(dataset))], dtype=np.int64)
    task_M = np.searchsorted(np.array(list(accumulate(boundaries))), number_M, side="right")
    return {f"task {task}": UsableRows(dataset, np.flatnonzero(task_M == task)) for task in range(len(boundaries))}


def empty_problem(sets: Mapping[str, Any]) -> Problem | None:
    """Returns a problem where a part of the evaluation set has no row with a label."""
    empty = [name for name, rows in sets.items() if not len(rows)]
    if not empty:
        return None
    what = f"no row of {listed(empty)} has a token with a label"
    return Problem("task_boundaries", what, "check eval_dataset, or use a larger cutoff_len if it cuts the answers off")


def task_places(sets: Sequence[str], groups: Mapping[str, Sequence[str]] | None) -> list[list[int]]:
    """Returns the places in ``sets`` of each task's: (K) lists; a set in no group is a task of its own."""
    group_of = {name: group for group, own in (groups or {}).items() for name in own}
    places: dict[tuple[str, str], list[int]] = {}
    for place, name in enumerate(sets):
        key = ("group", group_of[name]) if name in group_of else ("set", name)
        places.setdefault(key, []).append(place)
    return list(places.values())


def task_scores(scores_NJ: NDArray[np.floating[Any]], places: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Returns the score of each row for each task: (N, K), the highest over the task's sets; NaN where one is.

    Args:
        scores_NJ: (N, J) scores for each evaluation set.
        places: What :func:`task_places` returned.
    """
    return np.stack([scores_NJ[:, list(own)].max(axis=1) for own in places], axis=1).astype(np.float64)
