"""From the configuration and the dataset to the schedule, and what is refused because it cannot be planned."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import replace
from typing import Any

import torch
from transformers import TrainingArguments

from dataflex.config.arguments import DataflexArguments
from dataflex.config.checks.enough_rows import Asked, rows_kept, too_few_kept, too_few_rows
from dataflex.config.checks.mixer_losses import WITHOUT_GRADIENTS, without_gradients
from dataflex.config.checks.stage_table import rows_meet
from dataflex.config.checks.steps import never_there, step_problems, total_key, two_totals
from dataflex.config.checks.streaming import EPOCH_KEYS, no_end, no_epoch, no_streams
from dataflex.config.mixture_sources import MixtureBy
from dataflex.config.spec import Part, RunSpec, places
from dataflex.core.errors import ConfigError, Problem, blaming, refuse
from dataflex.core.schedule import Schedule, Steps
from dataflex.discovery.component_classes import find
from dataflex.planning.step_rows import StepRows
from dataflex.rows.streams import Stream
from dataflex.rows.views import MixedSources

PIECE = 1_000_000
"""Rows of a mixture that are planned at once where no update asks for more: a third of a second, and 40 MB."""


def global_batch_size(args: TrainingArguments) -> int:
    """Returns the rows of an optimizer step over all ranks."""
    return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)


def rows_of_steps(args: TrainingArguments) -> StepRows:
    """Returns how many rows optimizer steps take where each takes a batch."""
    return StepRows(global_batch_size(args), args.gradient_accumulation_steps, args.gradient_accumulation_steps)


def run_schedule(spec: RunSpec, args: TrainingArguments, dataset: Any, prompts: StepRows | None = None) -> Schedule:
    """Returns the schedule of a run over a train dataset.

    Args:
        spec: The run.
        args: Its training arguments.
        dataset: The train dataset.
        prompts: How many rows optimizer steps take where these are prompts; None where each step takes a batch.

    Raises:
        ConfigError: The numbers of steps contradict each other; a selector without replacement would be asked for more
            rows than there are; or streams are to be passed over, or something is to happen once an epoch of theirs.
    """
    batch = global_batch_size(args)
    steps, named = require_steps(spec, args)
    rows = rows_in_pass(dataset)
    if rows is None:
        refuse([*no_end(steps), *no_epoch({key: getattr(args, key) for key in EPOCH_KEYS})])
        schedule = steps.plan(steps.total_over(0))  # the run is the one epoch that is known
    else:
        per_pass = _steps_per_pass(rows, args, spec.plans) if prompts is None else _generations(rows, prompts)
        schedule = steps.plan(per_pass)
    pieces = spec.plans and spec.selector is None and (spec.order is None or spec.order.over == "run")
    if pieces:  # what begins with no update may be planned in pieces; a selector is asked for its warm-up once
        whole = 1 if prompts is None else prompts.unit
        schedule = replace(schedule, longest=max(1, PIECE // batch // whole) * whole)
    if spec.parts:
        refuse(never_there(places(spec), spec.axes, replace(steps, train_step=schedule.total)))
    if rows is not None and spec.trains and prompts is None:
        refuse(_too_few(spec, Asked(steps, batch, rows, rows, named)))
    elif rows is not None and spec.trains and prompts is not None:
        refuse(_too_few_prompts(spec, schedule, prompts, rows))
    return schedule


def _too_few(spec: RunSpec, asked: Asked) -> list[Problem]:
    """Returns a problem where the selector that chooses would be asked for more rows than there are, or are kept."""
    if spec.selector is None or spec.mixes or _repeats(spec.selector):  # else rows come again where they must
        return []
    problems = too_few_rows(asked)
    if problems:
        return problems
    kept = [(where, part.keep) for where, part in zip(places(spec), spec.axes, strict=True) if part.keep is not None]
    return too_few_kept(asked, kept)


def _too_few_prompts(spec: RunSpec, schedule: Schedule, prompts: StepRows, rows: int) -> list[Problem]:
    """Returns a problem where the selector that chooses would be asked for more prompts than there are, or are kept."""
    if spec.selector is None or spec.mixes or _repeats(spec.selector):
        return []
    kept = rows
    for part in spec.filters:
        assert part.keep is not None
        kept = rows_kept(kept, part.keep)
    longest = schedule.longest_segment
    there, wanted = kept if longest.update is not None else rows, prompts.of(longest.steps)
    if wanted <= there:
        return []
    found = f"the dataset has {rows}" if there == rows else f"the filters keep {there} of the dataset's {rows}"
    what = (
        f"a stretch of {longest.steps} steps asks for {wanted} prompts at once ({prompts.rows} for each generation), "
        f"and {found}"
    )
    fits = there // prompts.rows * prompts.every // prompts.accumulation // prompts.unit * prompts.unit
    way_out = f"an update every {fits} steps or fewer (update_step, warmup_step)" if fits else "give more prompts"
    return [Problem("update_step", what, f"{way_out}, or a selector with `replacement: true`")]


def _generations(rows: int, prompts: StepRows) -> int:
    """Returns the steps in which every prompt is sampled once, the last few left out as the trainer's sampler does."""
    return max(1, -(-max(1, rows // prompts.rows) * prompts.every // prompts.accumulation))


def require_steps(spec: RunSpec, args: TrainingArguments) -> tuple[Steps, str]:
    """Returns the steps and updates of a run, and the key that its total was given under.

    Raises:
        ConfigError: The numbers of steps contradict each other.
    """
    keys = spec.arguments
    refuse(two_totals(keys.train_step, args.max_steps))
    steps = spec.steps(args.max_steps, float(args.num_train_epochs))
    named = total_key((), spec.llamafactory if keys.train_step else {"max_steps": args.max_steps})
    refuse(step_problems(steps, named))
    return steps, named


def _steps_per_pass(rows: int, args: TrainingArguments, plans: bool) -> int:
    """Returns the steps in which every row is seen once; a run that only weighs counts the loop's own batches."""
    batch = int(args.train_batch_size * args.world_size)
    dropped = args.dataloader_drop_last and not plans
    batches = rows // batch if dropped else -(-rows // batch)
    return max(1, -(-batches // args.gradient_accumulation_steps))


def rows_in_pass(dataset: Any) -> int | None:
    """Returns the rows of a pass over a train dataset; None where streams do not say how many they have."""
    if not isinstance(dataset, MixedSources):
        return len(dataset)
    known = [source.rows if isinstance(source, Stream) else len(source) for source in dataset.sources]
    counts = [count for count in known if count is not None]
    return sum(counts) if len(counts) == len(known) else None


# What computes the training loss without the logits of each row, so that no source has a loss of its own.
_WITHOUT_LOGITS = ("enable_liger_kernel", "use_asft_loss")


def require_observable(spec: RunSpec) -> None:
    """Refuses a loss that a mixer which follows the losses of the sources cannot see. Loads no model.

    Raises:
        ConfigError: With the way out.
    """
    if spec.mixer is None:
        return
    component = spec.mixer.component
    mixer = find(component.kind, component.name)
    with blaming(f"mixer '{component.preset}'"):
        observes = mixer.may_observe(component.params)  # type: ignore[attr-defined]  # a Mixer
        takes_gradients = mixer.may_observe_gradients(component.params)  # type: ignore[attr-defined]  # a Mixer
        held_out = mixer.needs_held_out(component.params)  # type: ignore[attr-defined]  # a Mixer
    theirs = spec.llamafactory
    split = bool(theirs.get("val_size")) and not theirs.get("eval_dataset")
    by = MixtureBy.of(spec.arguments)
    if held_out and theirs and by is not None and by.column is None:
        raise ConfigError(
            f"mixture_by: the mixer '{component.name}' looks at held-out rows of each source, and val_size holds rows "
            f"out that {spec.arguments.mixture_by} says nothing of -> write mixture_by: column:NAME, or use a mixer "
            "that looks at training losses"
        )
    if held_out and theirs and not (spec.arguments.mixer_eval_dataset or split):
        raise ConfigError(
            f"mixer_eval_dataset is missing; the mixer '{component.name}' looks at held-out rows of each source -> "
            "name one dataset per dataset, or set val_size, without eval_dataset, to hold rows out of each"
        )
    if not observes:
        return
    for key in WITHOUT_GRADIENTS if takes_gradients else ():
        if spec.llamafactory.get(key):
            raise ConfigError(str(without_gradients(component.name, key)))
    together = rows_meet(str(spec.llamafactory.get("stage")), spec.llamafactory, in_training=True)
    if together is not None:
        raise ConfigError(
            f"{together[0]}: the mixer '{component.name}' follows the loss of each source, and this {together[1]} -> "
            f"set {together[0]}: 0, or use a mixer that does not look at losses"
        )
    on = [key for key in _WITHOUT_LOGITS if spec.llamafactory.get(key)]
    if on:
        raise ConfigError(
            f"{on[0]}: the mixer '{component.name}' follows the loss of each source, and this computes the loss "
            f"of a batch without its logits -> set {on[0]}: false, or use a mixer that does not look at losses"
        )


def require_map_style(dataset: Any, train_type: str, keys: DataflexArguments | None = None) -> None:
    """Refuses what cannot be planned by row number: no dataset, an empty one, a stream.

    Args:
        dataset: The train dataset.
        train_type: That of the run.
        keys: dataflex's keys, which say what axes a composed run has; a short form needs none.

    Raises:
        ConfigError: With the reason and the way out.
    """
    keys = DataflexArguments(train_type) if keys is None else keys
    if dataset is None:
        raise ConfigError(f"train_type: {train_type} needs a train dataset -> give train_dataset (dataset in a YAML)")
    if isinstance(dataset, Mapping) and keys.plans and not keys.mixes:
        names = ", ".join(map(str, dataset)) or "none"
        raise ConfigError(
            f"train_dataset: found a mapping of datasets ({names}), but train_type: {train_type} trains on one -> give "
            "one of them, or all as one with datasets.concatenate_datasets"
        )
    if isinstance(dataset, torch.utils.data.IterableDataset) or not isinstance(dataset, Sized):
        refuse(no_streams(keys))
    if len(dataset) == 0:
        raise ConfigError("the train dataset is empty -> check the files behind dataset, and max_samples")


def _repeats(selector: Part) -> bool:
    """Whether rows may repeat: the parameter ``replacement`` where the user gave it, else what the class declares."""
    component = selector.component
    declared = find(component.kind, component.name).replacement  # type: ignore[attr-defined]  # a Selector
    return bool(component.params.get("replacement", declared))
