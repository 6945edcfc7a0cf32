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
from dataflex.core.schedule import plan_schedule


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
    batch = draft.count("per_device_train_batch_size", 8) * draft.count("gradient_accumulation_steps", 1)
    steps, exact = _longest_stretch(draft, total, batch)
    asked = steps * batch
    if batch < 1 or asked <= total or (not exact and asked < total + batch):  # the last batch of an epoch wraps round
        return []
    what = f"asks for {asked} rows at once ({steps} steps of {batch} rows), the dataset has {total}"
    way_out = "lower update_step, warmup_step or the batch size, or use a selector with replacement: true"
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


def _longest_stretch(draft: Draft, rows: int, batch: int) -> tuple[int, bool]:
    """Returns its steps, and whether they follow from the configuration alone, whatever the number of rows."""
    a = draft.arguments
    schedule = plan_schedule(
        warmup_step=a.warmup_step,
        update_step=a.update_step,
        update_times=a.update_times,
        train_step=a.train_step,
        epochs=draft.number("num_train_epochs", 3.0),
        repeat="num_train_epochs" in draft.theirs,
        steps_per_pass=-(-rows // max(batch, 1)),
    )
    given = a.train_step > 0 or (a.update_times >= 0 and a.warmup_step + a.update_step * a.update_times > 0)
    return schedule.largest_segment, given
