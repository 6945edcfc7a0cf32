"""From the configuration and the dataset to the schedule, and what is refused because it cannot be planned."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import replace
from typing import Any

import torch
from transformers import TrainingArguments

from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError
from dataflex.core.registry import find
from dataflex.core.schedule import Schedule, plan_schedule

PIECE = 1_000_000
"""Rows of a mixture that are planned at once where no update asks for more: a quarter of a second, and 28 MB."""


def run_schedule(spec: RunSpec, args: TrainingArguments, rows: int, global_batch_size: int) -> Schedule:
    """Returns the schedule of a run over ``rows`` rows.

    Raises:
        ConfigError: A selector without replacement would be asked for more rows than there are.
    """
    keys = spec.arguments
    selects = keys.train_type == "dynamic_select"
    schedule = plan_schedule(
        warmup_step=0 if keys.static_mix else keys.warmup_step,
        update_step=keys.update_step,
        update_times=0 if keys.static_mix else keys.update_times,
        train_step=_total(spec, args),
        epochs=spec.epochs if spec.epochs is not None else float(args.num_train_epochs),
        repeat=selects and spec.epochs is not None,
        steps_per_pass=-(-rows // global_batch_size),
    )
    if keys.train_type == "dynamic_mix":  # its warm-up may be planned in pieces; a selector is asked for it once
        schedule = replace(schedule, longest=max(1, PIECE // global_batch_size))
    asked = schedule.largest_segment * global_batch_size
    if selects and asked > rows and not _repeats(spec):
        raise ConfigError(
            f"the longest segment asks for {asked} rows ({schedule.largest_segment} steps x {global_batch_size} rows "
            "per step), "
            f"but the train dataset has {rows} -> lower warmup_step, update_step or the batch size, or use a selector "
            "with `replacement: true`"
        )
    return schedule


# What computes the training loss without the logits of each row, so that no source has a loss of its own.
_WITHOUT_LOGITS = ("enable_liger_kernel", "use_asft_loss")


def require_observable(spec: RunSpec) -> None:
    """Refuses a loss that a mixer which follows the losses of the sources cannot see. Loads no model.

    Raises:
        ConfigError: With the way out.
    """
    if spec.component is None:
        return
    mixer = find(spec.component.kind, spec.component.name)
    if not mixer.may_observe(spec.component.params):  # type: ignore[attr-defined]  # a Mixer
        return
    on = [key for key in _WITHOUT_LOGITS if spec.llamafactory.get(key)]
    if on:
        raise ConfigError(
            f"{on[0]}: the mixer '{spec.component.name}' follows the loss of each source, and this computes the loss "
            f"of a batch without its logits -> set {on[0]}: false, or use a mixer that does not look at losses"
        )


def require_map_style(dataset: Any, train_type: str) -> None:
    """Refuses what cannot be planned by row number: no dataset, an empty one, a stream.

    Raises:
        ConfigError: With the reason and the way out.
    """
    if dataset is None:
        raise ConfigError(f"train_type: {train_type} needs a train dataset -> set dataset")
    if isinstance(dataset, torch.utils.data.IterableDataset) or not isinstance(dataset, Sized):
        raise ConfigError(
            f"train_type: {train_type} chooses rows by number, which a stream has none of -> set streaming: false"
        )
    if len(dataset) == 0:
        raise ConfigError("the train dataset is empty -> check the files behind dataset, and max_samples")


def _total(spec: RunSpec, args: TrainingArguments) -> int:
    keys = spec.arguments
    if keys.train_step or args.max_steps > 0:
        return keys.train_step or args.max_steps
    if keys.static_mix and keys.update_times > 0:
        return keys.warmup_step + keys.update_step * keys.update_times
    return 0


def _repeats(spec: RunSpec) -> bool:
    """Whether rows may repeat: the parameter ``replacement`` where the user gave it, else what the class declares."""
    if spec.component is None:
        return False
    declared = find(spec.component.kind, spec.component.name).replacement  # type: ignore[attr-defined]  # a Selector
    return bool(spec.component.params.get("replacement", declared))
