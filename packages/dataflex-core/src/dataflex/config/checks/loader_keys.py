"""What becomes of the keys of the train dataloader: honoured, refused, or without effect, each in one table.

Rows that are planned come from a loader of our own, so a key that nobody looked at would be ignored in silence.
``validate`` asks with the keys of a file, the trainers with the arguments that they were given; a test walks the fields
of the installed ``TrainingArguments`` and ``AcceleratorConfig``, so that a new one must be put here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dataflex.config.arguments import COMPOSED
from dataflex.config.checks.parsed_config import Draft
from dataflex.config.load import read_text
from dataflex.config.text import parse_json
from dataflex.core.errors import ConfigError, Problem
from dataflex.core.kinds import KINDS, SELECTOR, WEIGHTER

CONFIG = "accelerator_config"
PLANNED = frozenset(kind.train_type for kind in KINDS if kind is not WEIGHTER)
DYNAMIC = PLANNED | {WEIGHTER.train_type}


@dataclass(frozen=True)
class LoaderKey:
    """What becomes of a key.

    Attributes:
        default: What it is where nobody sets it.
        refused: The train types that refuse another value. A composed run is one of :data:`PLANNED` where it plans
            rows, else it only weighs.
        idle: The train types with which another value has no effect on the rows that are trained on.
        why: The reason, where it is refused.
        way_out: What to do about it.
    """

    default: Any = None
    refused: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()
    why: str = ""
    way_out: str = "remove it"


HONOURED = LoaderKey()

KEYS: Mapping[str, LoaderKey] = {
    "per_device_train_batch_size": HONOURED,
    "gradient_accumulation_steps": HONOURED,
    "average_tokens_across_devices": HONOURED,
    "include_num_input_tokens_seen": HONOURED,
    "data_seed": HONOURED,
    "remove_unused_columns": HONOURED,
    "ignore_data_skip": HONOURED,  # a planned run starts its loader at its step in any case
    "dataloader_num_workers": HONOURED,  # with streams at most 1, see checks/streams
    "dataloader_prefetch_factor": HONOURED,
    "dataloader_pin_memory": HONOURED,
    "dataloader_multiprocessing_context": HONOURED,
    "dataloader_in_order": LoaderKey(
        True,
        DYNAMIC,
        why="is False, but a train_type: {train_type} run trains on its rows in their order, as a resumed one must",
    ),
    "dataloader_drop_last": LoaderKey(False, idle=PLANNED),  # there are whole steps of rows
    "dataloader_persistent_workers": LoaderKey(False, idle=PLANNED),  # no worker crosses an update
    "length_column_name": LoaderKey("length", idle=PLANNED),
    "group_by_length": LoaderKey(False, idle=PLANNED),
    "train_sampling_strategy": LoaderKey("random", idle=PLANNED),
    "per_gpu_train_batch_size": LoaderKey(
        None, DYNAMIC, why="is an old name that the plan does not follow", way_out="set per_device_train_batch_size"
    ),
    "auto_find_batch_size": LoaderKey(
        False,
        DYNAMIC,
        why="is True, but what train_type: {train_type} plans depends on the batch size",
        way_out="remove it and set per_device_train_batch_size",
    ),
    "include_tokens_per_second": LoaderKey(
        None,
        PLANNED,
        why="takes a batch before the run begins, when its rows cannot be planned yet",
        way_out="set include_num_input_tokens_seen: true, which counts what is trained on",
    ),
    "parallelism_config": LoaderKey(
        None,
        DYNAMIC,
        why="splits a batch over ranks, but each rank of a train_type: {train_type} run trains on rows of its own",
        way_out="remove it, or use fsdp or deepspeed to shard the model",
    ),
    f"{CONFIG}.split_batches": LoaderKey(
        False,
        DYNAMIC,
        why="is True, but per_device_train_batch_size is that of each rank with train_type: {train_type}",
        way_out="remove it and divide per_device_train_batch_size by the number of ranks",
    ),
    f"{CONFIG}.dispatch_batches": LoaderKey(
        None, PLANNED, why="is True, but each rank reads its own rows with train_type: {train_type}"
    ),
    f"{CONFIG}.even_batches": LoaderKey(True, idle=PLANNED),  # every rank has whole batches
    f"{CONFIG}.use_seedable_sampler": LoaderKey(True, idle=PLANNED),  # the order is planned
    f"{CONFIG}.non_blocking": HONOURED,
    f"{CONFIG}.use_configured_state": HONOURED,
    f"{CONFIG}.gradient_accumulation_kwargs": HONOURED,
    f"{CONFIG}.gradient_accumulation_kwargs.num_steps": LoaderKey(
        None,
        DYNAMIC,
        why="is another name for gradient_accumulation_steps, which the plan is made by",
        way_out="set gradient_accumulation_steps",
    ),
}
"""Key -> what becomes of it. A value that is off or the default does nothing."""

_PARALLEL = ("tp_size", "cp_size", "sp_size")


def keys_of(draft: Draft) -> dict[str, Any]:
    """Returns the keys of :data:`KEYS` that a file gives a value, those of ``accelerator_config`` among them."""
    config = draft.theirs.get(CONFIG)
    if isinstance(config, str):
        config = _read(config)
    return flat({key: value for key, value in draft.theirs.items() if key in KEYS}, config)


def flat(given: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Returns keys with those of an ``accelerator_config`` under their path."""
    inside = config if isinstance(config, Mapping) else {}
    accumulation = inside.get("gradient_accumulation_kwargs")
    steps = accumulation.get("num_steps") if isinstance(accumulation, Mapping) else None
    nested = {f"{CONFIG}.{key}": value for key, value in inside.items()}
    return {**given, **nested, f"{CONFIG}.gradient_accumulation_kwargs.num_steps": steps}


def loader_problems(train_type: str, given: Mapping[str, Any], plans: bool = True) -> list[Problem]:
    """Returns a problem for each key that is refused.

    Args:
        train_type: A dynamic one.
        given: Keys of :data:`KEYS` with their values; other keys are not looked at.
        plans: Whether a run of several axes plans its rows.
    """
    like = _like(train_type, plans)
    return [
        Problem(name, key.why.format(train_type=train_type), key.way_out)
        for name, key in KEYS.items()
        if like in key.refused and _set(name, given.get(name), key)
    ]


def idle_keys(train_type: str, given: Mapping[str, Any], plans: bool = True) -> Iterator[str]:
    """Yields the keys that are set and have no effect on the rows that are trained on; as :func:`loader_problems`."""
    like = _like(train_type, plans)
    for name, key in KEYS.items():
        if like in key.idle and _set(name, given.get(name), key):
            yield name


def _like(train_type: str, plans: bool) -> str:
    """Returns the short form whose loader a run has."""
    if train_type != COMPOSED:
        return train_type
    return SELECTOR.train_type if plans else WEIGHTER.train_type


def _set(name: str, value: Any, key: LoaderKey) -> bool:
    if name == "parallelism_config":
        sizes = value if isinstance(value, Mapping) else {} if value is None else vars(value)
        return any((sizes.get(size) or 1) > 1 for size in _PARALLEL)
    off = value is None or (value is False and key.default is not True)
    return not off and value != key.default


def _read(text: str) -> Any:
    """Returns what a text of ``accelerator_config`` stands for: JSON, or the name of a file of it; else nothing."""
    try:
        return parse_json(text if text.lstrip().startswith("{") else read_text(text), CONFIG)
    except ConfigError:
        return None  # checks/values and the arguments of transformers complain about it
