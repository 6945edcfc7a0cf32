"""More rows asked than exist: what a selector would be asked for at an update, against the rows of small local files.

This is a lower bound on what is asked (one process) against an upper bound on what is there (rows that LLaMA-Factory
drops are counted), so it refuses nothing that could run. The trainer checks again with the real numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dataflex.config.checks.parsed_config import Draft, KnownPart
from dataflex.config.checks.steps import step_problems, total_key
from dataflex.core.errors import Problem
from dataflex.core.kinds import SELECTOR
from dataflex.core.schedule import Segment, Steps


def row_problems(draft: Draft, rows: Mapping[str, int | None]) -> list[Problem]:
    """Returns a problem where the longest stretch between two updates needs more rows than there are.

    Args:
        draft: The configuration.
        rows: Dataset -> rows, or None where unknown.
    """
    packed = draft.on("packing") or draft.on("neat_packing")
    selectors = [known for known in draft.known if known.kind is SELECTOR]
    chooser = next((known for known in selectors if known.part.keep is None), None)
    if chooser is None or draft.arguments.mixes or draft.stage != "sft" or packed:
        return []  # without a selector that chooses, and inside of a mixture, rows come again where they must
    total, batch = _train_rows(draft, rows), draft.global_batch_size
    if not total or batch < 1 or repeats(chooser) is not False:
        return []
    spare = batch - 1 if draft.steps.by_epochs and not draft.steps.formula else 0  # the last batch of an epoch is short
    asked = Asked(draft.steps, batch, total + spare, total, total_key(draft.written, draft.theirs))
    kept = [(known.where, known.part.keep) for known in selectors if known.part.keep is not None]
    return too_few_rows(asked) or too_few_kept(asked, kept)


@dataclass(frozen=True)
class Asked:
    """What a run asks of a selector without replacement.

    Attributes:
        steps: The run's steps and updates.
        batch: Rows of a step, over all ranks.
        rows: Rows that the selector may be asked for at once.
        found: Rows that there are.
        total_key: The key that ``train_step`` was given under.
    """

    steps: Steps
    batch: int
    rows: int
    found: int
    total_key: str = "train_step"

    @property
    def longest(self) -> Segment:
        """The stretch that asks for most."""
        return self.steps.plan(-(-self.found // self.batch)).longest_segment

    @property
    def fits(self) -> bool:
        """Whether the run can start, whatever the last batch of an epoch is counted as."""
        return not step_problems(self.steps) and self.longest.steps * self.batch <= self.found

    @property
    def responsible(self) -> str:
        """The key that makes the longest stretch as long as it is."""
        longest, steps = self.longest, self.steps
        if longest.update is not None:
            return self.total_key if longest.steps > steps.update_step else "update_step"
        if steps.update_times != 0:
            return "warmup_step"
        return self.total_key if steps.train_step else "num_train_epochs" if steps.by_epochs else "warmup_step"


def too_few_rows(asked: Asked) -> list[Problem]:
    """Returns a problem where a selector without replacement would be asked for more rows than there are.

    Each way out that names a number is tried before it is given: the run can start with it.
    """
    longest = asked.longest.steps
    if longest * asked.batch <= asked.rows:
        return []
    what = (
        f"asks for {longest * asked.batch} rows at once ({longest} steps of {asked.batch} rows), the dataset has "
        f"{asked.found}"
    )
    ways = [*_ways_out(asked, longest), "use a selector with `replacement: true`"]
    return [Problem(asked.responsible, what, ", or ".join(ways))]


def too_few_kept(asked: Asked, filters: Sequence[tuple[str, float]]) -> list[Problem]:
    """Returns a problem where the filters leave fewer rows than an update asks for.

    Args:
        asked: The run.
        filters: The place of each filter, and the share that it keeps.
    """
    kept = asked.found
    for _, keep in filters:
        kept = rows_kept(kept, keep)
    longest = asked.steps.plan(-(-asked.found // asked.batch)).longest_update
    wanted = longest * asked.batch
    if not filters or wanted <= kept + asked.rows - asked.found:
        return []
    where, keep = min(filters, key=lambda each: each[1])
    what = (
        f"is {keep:g}: the filters keep {kept} of the dataset's {asked.found} rows, and an update asks for {wanted} "
        f"({longest} steps of {asked.batch} rows)"
    )
    ways = []
    share = math.ceil(1000 * wanted / (asked.found * math.prod(each for _, each in filters) / keep)) / 1000
    if share <= 1:
        ways.append(f"set keep: {share:g} or more")
    if longest > asked.steps.update_step:
        ways.append("set update_times: -1, so that the last stretch is as long as the others")
    elif kept >= asked.batch:
        ways.append(f"set update_step: {kept // asked.batch} or less")
    return [Problem(f"{where}.keep", what, ", or ".join(ways) or "use more rows, or fewer filters")]


def rows_kept(rows: int, keep: float) -> int:
    """Returns how many of the rows a filter keeps: one at least."""
    return max(1, math.floor(keep * rows + 0.5))


def _ways_out(asked: Asked, longest: int) -> Iterator[str]:
    most = asked.found // asked.batch  # steps that the rows are enough for
    named = {"train_step": asked.total_key, "epochs": "num_train_epochs"}
    for choices in _changes(asked.steps, most) if most else ():
        fit = (keys for keys in choices if replace(asked, steps=replace(asked.steps, **keys)).fits)
        for keys in itertools.islice(fit, 1):
            yield "set " + " and ".join(f"{named.get(key, key)}: {value}" for key, value in keys.items())
    batch = asked.found // longest
    if batch and replace(asked, batch=batch).fits:
        yield f"train on {batch} rows a step (per_device_train_batch_size * gradient_accumulation_steps * ranks)"


def _changes(steps: Steps, most: int) -> Iterator[list[dict[str, Any]]]:
    """Yields what might bring each stretch down to ``most`` steps, as fields of ``Steps``: groups, best first."""
    updates, warm_up = {"update_step": most}, {"warmup_step": most}
    if steps.train_step:
        before_last = steps.warmup_step + steps.update_step * max(steps.update_times - 1, 0)
        if steps.update_times > 0:
            yield [{"update_times": -1}]  # the last segment no longer runs to the end
        yield [{"train_step": before_last + most}, {"train_step": most}]
    more = {"update_times": -1} if steps.update_times == 0 else {}
    yield [more | updates, warm_up, more | updates | warm_up, {"update_times": -1} | updates | warm_up]
    if steps.by_epochs:
        yield [{"epochs": 1}]


def _train_rows(draft: Draft, rows: Mapping[str, int | None]) -> int | None:
    counts = [rows.get(name) for name in draft.dataset_names]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None
    limit = draft.count("max_samples", 0)
    total = sum(min(count, limit) if limit > 0 else count for count in known)
    held_out = draft.number("val_size", 0)
    return total - (math.ceil(total * held_out) if held_out < 1 else int(held_out))


def repeats(selector: KnownPart) -> bool | None:
    """Returns whether a selector may return a row twice; None where nobody knows before it is imported."""
    params, info = selector.part.component.params, selector.info
    if "replacement" in params:
        return bool(params["replacement"])
    declared = selector.declares("replacement")
    default = info.parameters.get("replacement") if info is not None else None
    known = default if isinstance(default, bool) else declared
    return known if isinstance(known, bool) else None
