"""More rows asked than exist: what a selector would be asked for at an update, against the rows of small local files.

This is a lower bound on what is asked (one process) against an upper bound on what is there (rows that LLaMA-Factory
drops are counted), so it refuses nothing that could run. The trainer checks again with the real numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from dataflex.config.checks.draft import Draft
from dataflex.config.spec import ComponentSpec
from dataflex.core.catalog import ComponentInfo
from dataflex.core.errors import Problem


def row_problems(
    draft: Draft, rows: Mapping[str, int | None], spec: ComponentSpec, info: ComponentInfo | None
) -> list[Problem]:
    """Returns a problem where the longest stretch between two updates needs more rows than there are.

    Args:
        draft: The configuration.
        rows: Dataset -> rows, or None where unknown.
        spec: The selector and its parameters.
        info: What is known about it.
    """
    packed = draft.on("packing") or draft.on("neat_packing")
    if draft.arguments.train_type != "dynamic_select" or draft.stage != "sft" or packed:
        return []
    total = _train_rows(draft, rows)
    if not total or _repeats(spec, info) is not False:
        return []
    batch = draft.global_batch_size
    if batch < 1:
        return []
    schedule = draft.steps.plan(-(-total // batch))
    spare = batch - 1 if draft.steps.by_epochs and not draft.steps.formula else 0  # the last batch of an epoch is short
    return too_few_rows(schedule.largest_segment, batch, total + spare, found=total)


def too_few_rows(steps: int, global_batch_size: int, rows: int, found: int | None = None) -> list[Problem]:
    """Returns a problem where a selector without replacement would be asked for more rows than there are.

    Args:
        steps: Steps of the longest segment.
        global_batch_size: Rows of a step.
        rows: Rows that it may be asked for.
        found: Rows that there are, where that is another number.
    """
    asked = steps * global_batch_size
    if asked <= rows:
        return []
    has = rows if found is None else found
    what = f"asks for {asked} rows at once ({steps} steps of {global_batch_size} rows), the dataset has {has}"
    way_out = "lower update_step, warmup_step or the batch size, or use a selector with `replacement: true`"
    return [Problem("update_step", what, way_out)]


def _train_rows(draft: Draft, rows: Mapping[str, int | None]) -> int | None:
    counts = [rows.get(name) for name in draft.dataset_names]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None
    limit = draft.count("max_samples", 0)
    total = sum(min(count, limit) if limit > 0 else count for count in known)
    held_out = draft.number("val_size", 0)
    return total - (math.ceil(total * held_out) if held_out < 1 else int(held_out))


def _repeats(spec: ComponentSpec, info: ComponentInfo | None) -> bool | None:
    """Whether the selector may return a row twice; None where nobody knows before it is imported."""
    if "replacement" in spec.params:
        return bool(spec.params["replacement"])
    declared = info.constants.get("replacement") if info is not None else None
    default = info.parameters.get("replacement") if info is not None else None
    known = default if isinstance(default, bool) else declared
    return known if isinstance(known, bool) else None
