"""What a run is: by what a checkpoint is known to belong to the run that resumes it.

The same questions are asked of every train type and at every door: which rows, in which order, in which schedule, with
which component and which objective. What is written in a YAML counts unless :data:`MAY_DIFFER` says that nothing which
is learnt depends on it; so a key that nobody has thought of is refused by name, not passed over. The length of a run
may grow (:mod:`dataflex.run.run_length`), and a step may be split over ranks and micro-batches in another way.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from dataflex.config.axis_keys import BY, COMPONENT, EVERY, FILE, FROM, KEEP, OVER, PARAMS
from dataflex.config.checks.parsed_config import names_in
from dataflex.config.spec import RunSpec, places
from dataflex.core.errors import CheckpointError
from dataflex.core.kinds import BY_TRAIN_TYPE, KINDS
from dataflex.core.registry import full_name, split_name
from dataflex.discovery.component_classes import find
from dataflex.discovery.construct import constructor_parameters
from dataflex.rows.digest import rows_digest
from dataflex.rows.streams import Stream
from dataflex.rows.views import MixedSources
from dataflex.utils.secret_values import without_secrets

LENGTH = frozenset({"train_step", "update_times", "num_train_epochs", "max_steps"})
"""Keys by which a run is continued: what they come to is compared as a schedule."""

MAY_DIFFER = frozenset({
    # where to resume, what is saved and where
    "resume_from_checkpoint", "overwrite_output_dir", "output_dir", "save_steps", "save_strategy", "save_total_limit",
    "save_on_each_node", "save_only_model", "push_to_hub", "push_to_hub_model_id", "push_to_hub_organization",
    "push_to_hub_token", "hub_model_id", "hub_strategy", "hub_token", "hf_hub_token",
    "ms_hub_token", "om_hub_token", "hub_private_repo", "hub_always_push", "hub_revision", "enable_jit_checkpoint",
    "save_safetensors", "restore_callback_states_from_checkpoint",
    # which of the weights that were learnt are kept, and when a run is over
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "early_stopping_steps",
    # what is reported
    "report_to", "run_name", "project", "plot_loss", "disable_tqdm", "logging_dir", "logging_steps", "logging_strategy",
    "logging_first_step", "logging_nan_inf_filter", "log_level", "log_level_replica", "log_on_each_node", "debug",
    "include_num_input_tokens_seen", "include_effective_tokens_per_second", "print_param_status", "skip_memory_metrics",
    "use_swanlab", "swanlab_api_key", "swanlab_lark_secret", "swanlab_lark_webhook_url", "swanlab_logdir",
    "swanlab_mode", "swanlab_project", "swanlab_run_name", "swanlab_workspace", "trackio_space_id",
    "trackio_bucket_id", "trackio_static_space_id", "enable_torch_profiler", "profile_modules", "profiler_output_dir",
    "profiler_wait_steps", "profiler_warmup_steps", "profiler_active_steps", "profiler_repeat",
    "profiler_record_shapes", "profiler_profile_memory", "profiler_with_stack",
    # what is evaluated and predicted; the rows that a component learns from are known by their digest
    "do_eval", "do_predict", "eval_dataset", "eval_on_each_dataset", "eval_steps", "eval_strategy", "eval_delay",
    "eval_on_start", "eval_accumulation_steps", "eval_do_concat_batches", "eval_num_beams", "batch_eval_metrics",
    "per_device_eval_batch_size", "bf16_full_eval", "fp16_full_eval", "compute_accuracy", "predict_with_generate",
    "prediction_loss_only", "include_for_metrics", "generation_config", "generation_max_length", "generation_num_beams",
    "do_sample", "temperature", "top_k", "top_p", "num_beams", "max_length", "max_new_tokens", "length_penalty",
    "repetition_penalty", "skip_special_tokens", "eval_use_gather_object",
    # inference and export, by other commands; export_quantization_* is read where a model is loaded to be trained too
    "infer_backend", "infer_dtype", "use_kv_cache", "vllm_maxlen", "vllm_gpu_util", "vllm_enforce_eager",
    "vllm_max_lora_rank", "vllm_config", "sglang_maxlen", "sglang_mem_fraction", "sglang_tp_size", "sglang_config",
    "sglang_lora_backend", "export_dir", "export_size", "export_device", "export_legacy_format", "export_hub_model_id",
    # how the machine is used; the rows of a step are compared, not how they are split
    "per_device_train_batch_size", "gradient_accumulation_steps", "preprocessing_num_workers", "dataloader_num_workers",
    "dataloader_pin_memory", "dataloader_prefetch_factor", "dataloader_persistent_workers", "ddp_static_graph",
    "trust_remote_code", "ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters", "ddp_timeout", "deepspeed", "fsdp", "fsdp_config", "local_rank", "use_cpu", "tf32",
    "flash_attn", "disable_gradient_checkpointing", "gradient_checkpointing", "gradient_checkpointing_kwargs",
    "activation_checkpointing", "activation_checkpointing_kwargs", "dataloader_multiprocessing_context",
    "dataloader_in_order",  # refused where it is not as it ever was
    "use_reentrant_gc", "use_unsloth_gc", "torch_compile", "torch_compile_backend", "torch_compile_mode",
    "torch_empty_cache_steps", "low_cpu_mem_usage", "offload_folder", "master_addr", "master_port", "ray_init_kwargs",
    "ray_num_workers", "weight_logits", "plugins", "components_cfg_file", "explain_rows",
    # where the data lie: that they are the same is known by their digest
    "dataset_dir", "media_dir", "cache_dir", "tokenized_path", "overwrite_cache", "data_shared_file_system",
})  # fmt: skip
"""Keys on which neither the rows nor the schedule nor the objective depends, but for rounding."""

NAMES = frozenset({"model_name_or_path", "adapter_name_or_path"})
"""Keys whose last part alone is compared: a model may lie elsewhere on another machine."""

LISTS = frozenset({"dataset"})
"""Keys that are names in an order, as a list or with commas between them."""

TRAINING_ARGUMENTS = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "optim", "optim_args",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "label_smoothing_factor",
    "neftune_noise_alpha",
)  # fmt: skip
"""Fields of TrainingArguments that decide what a step does with its rows, for runs that have no YAML too."""

ROW_ORDER = ("dataloader_drop_last", "group_by_length", "train_sampling_strategy", "length_column_name")
"""Fields that decide the order of rows where dataflex does not plan it."""

TRAIN_DATASET = "train dataset"
"""The name of the train dataset, where it is not made of sources that have names."""

_AXES = frozenset(kind.name for kind in KINDS)
_ELSEWHERE = frozenset({
    *TRAINING_ARGUMENTS, *ROW_ORDER, "train_type", "component_name", "component", "warmup_step", "update_step", "seed",
    "data_seed", *_AXES,
})  # fmt: skip
_PLACES = frozenset({"cache_dir", "output_dir"})  # parameters of a component that name its folders
_UNSTABLE = "rows that differ each time they are read"


def settings(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those keys of a configuration that a checkpoint and the run that resumes it must share; plain values."""
    compared = {key: value for key, value in keys.items() if key not in MAY_DIFFER | LENGTH and value is not None}
    axes = {key: compared.pop(key) for key in _AXES & compared.keys()}
    parts = {place: value for key, given in axes.items() for place, value in _flat(key, given)}
    return {key: _compared(key, value) for key, value in compared.items()} | parts


def _flat(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yields what stands under an axis, each value with its path, such as ``selector[0].keep``."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(f"{place}.{key}", item)
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            yield from _flat(f"{place}[{number}]", item)
    else:
        yield place, _plain(value)


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], where: str) -> list[str]:
    """Returns one line for each key that differs.

    Args:
        saved: What was.
        now: What is.
        where: What ``saved`` is of, such as ``in the checkpoint``.
    """
    keys = sorted(key for key in {*saved, *now} if not same(saved.get(key), now.get(key)))
    return [f"{key}: {_shown(saved, key)} {where}, {_shown(now, key)} now" for key in keys]


def same(one: Any, other: Any) -> bool:
    """Returns whether two values of a configuration mean the same: NaN is NaN, and what is off.

    An earlier version let ``max_grad_norm: .nan`` pass, with which nothing is clipped, as with 0. It is refused now, so
    such a run goes on with 0.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if _is_nan(one) or _is_nan(other):
        return (_is_nan(one) or not one) and (_is_nan(other) or not other)
    return bool(one == other)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def identity_of_run(spec: RunSpec, seed: int) -> dict[str, Any]:
    """Returns what is known of a run from its configuration."""
    component = spec.component
    params = {} if component is None else without_secrets(component.params)
    written = without_secrets(spec.arguments.to_dict() | dict(spec.llamafactory))
    return {
        "train_type": spec.arguments.train_type,
        "component": None if component is None else full_name(component.kind, component.name),
        "component_name": None if component is None else split_name(component.preset)[1],
        "params": {key: _plain(value) for key, value in params.items() if key not in _PLACES},
        "seed": seed,
        "settings": settings({k: v for k, v in written.items() if k not in _ELSEWHERE}),
        **_parts(spec),
    }


def _parts(spec: RunSpec) -> dict[str, Any]:
    """Returns the parts of a composed run key by key, as they stand in its file; of a short form, those of an order.

    A file of scores is known by its name: it may lie in another folder when the run is resumed.
    """
    found: dict[str, Any] = {}
    for where, part in zip(places(spec), spec.axes, strict=True):
        said = {EVERY: part.every, FROM: part.start, KEEP: part.keep} if spec.parts else {}
        by = FILE + PurePath(part.by).name if part.by is not None and part.by.startswith(FILE) else part.by
        found |= {f"{where}.{key}": value for key, value in (said | {BY: by, OVER: part.over}).items()}
        if spec.parts:
            component = part.component
            found |= {
                f"{where}.{COMPONENT}": full_name(component.kind, component.name),
                f"{where}.preset": split_name(component.preset)[1],
            }
            params = without_secrets(component.params)
            found |= {f"{where}.{PARAMS}.{key}": _plain(v) for key, v in params.items() if key not in _PLACES}
    found = {key: value for key, value in found.items() if value is not None}
    return {"parts": found} if found else {}


def identity_of_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what TrainingArguments (``to_dict()`` of them) say of how a step is made.

    Not set, zero and False are the same, as between versions of transformers they stand for each other.
    """
    return {key: _plain(arguments[key]) for key in (*TRAINING_ARGUMENTS, *ROW_ORDER) if arguments.get(key)}


def identity_of_rows(name: str, dataset: Any) -> list[list[Any]]:
    """Returns name, number and digest of each source in order; a stream has neither number nor digest.

    Reads a fixed sample of the rows twice, and leaves the global random states as they were. Rows that differ the
    second time have no digest: they are compared by their number alone. Makes no collective call.
    """
    if isinstance(dataset, MixedSources):
        dataset = dict(zip(dataset.names, dataset.sources, strict=True))
    if isinstance(dataset, Mapping):
        return [entry for source, part in dataset.items() for entry in identity_of_rows(source, part)]
    if isinstance(dataset, Stream):
        order = "a stream" if dataset.order is None else f"a stream in blocks of {dataset.order.block}"
        return [[name, None, order]]
    if dataset is None or isinstance(dataset, torch.utils.data.IterableDataset):
        return [[name, None, "none" if dataset is None else "a stream"]]
    with _random_states_kept():
        digest = rows_digest(dataset)
        again = rows_digest(dataset)  # all of them: a transform may change one row in a hundred
    return [[name, len(dataset), digest if again == digest else _UNSTABLE]]


def identity_of_evaluation(spec: RunSpec, runtime: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the evaluation rows that the components take, where they take any."""
    taken: set[str] = set()
    for part in spec.axes:
        taken.update(constructor_parameters(find(part.component.kind, part.component.name))[0])
    return {
        key: identity_of_rows(key, runtime[key])
        for key in ("eval_dataset", "mixer_eval_dataset")
        if key in taken and runtime.get(key) is not None
    }


def require_same(saved: Mapping[str, Any], now: Mapping[str, Any], folder: object) -> None:
    """Refuses a checkpoint of another run. The lengths of the two are not looked at.

    Args:
        saved: Identity stored in the checkpoint.
        now: Identity of the present run.
        folder: The checkpoint, for the message.

    Raises:
        CheckpointError: Naming every difference, or that the checkpoint does not say what it was made from.
    """
    if "data" not in saved:
        raise CheckpointError(
            f"{folder} was written by an earlier version of dataflex, which did not note the rows it was trained on "
            "-> end that run with the version that began it, or take the checkpoint's weights (model_name_or_path or "
            "adapter_name_or_path) and start anew"
        )
    saved, now = _named_alike(saved), _named_alike(now)
    found = [line for key in sorted({*saved, *now}) for line in _differing(key, saved.get(key), now.get(key))]
    if found:
        raise CheckpointError(
            f"{folder} belongs to another run:\n  - " + "\n  - ".join(found) + "\n-> restore the configuration and the "
            "data it was made with, or start anew in another output_dir; its weights can be trained on from there "
            "(model_name_or_path or adapter_name_or_path)"
        )


def _named_alike(known: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns an identity with its component under its full name, as ``random`` may be written with its package too."""
    kind, component, preset = BY_TRAIN_TYPE.get(str(known.get("train_type"))), known.get("component"), "component_name"
    if kind is None or not isinstance(component, str) or not isinstance(known.get(preset), str):
        return known
    return {**known, "component": full_name(kind, component), preset: split_name(known[preset])[1]}


def _differing(key: str, saved: Any, now: Any) -> Iterator[str]:
    if same(saved, now) or key == "schedule":  # see dataflex.run.run_length
        return
    if key in ("settings", "arguments", "parts"):
        yield from differences(saved or {}, now or {}, "in the checkpoint")
    elif isinstance(saved, list) and isinstance(now, list):
        yield from _differing_rows(saved, now)
    else:
        yield f"{key}: {saved} in the checkpoint, {now} now"


def _differing_rows(saved: list[list[Any]], now: list[list[Any]]) -> Iterator[str]:
    before, after = ({name: tuple(rest) for name, *rest in rows} for rows in (saved, now))
    if list(before) != list(after):
        yield f"sources, in this order: {', '.join(before)} in the checkpoint, {', '.join(after)} now"
    for name in sorted(before.keys() & after.keys()):
        drawn_anew = _UNSTABLE in before[name] + after[name]  # by luck, a few of them may have been the same twice
        if before[name][0] != after[name][0] or (before[name] != after[name] and not drawn_anew):
            yield f"{name}: {_rows(*before[name])} in the checkpoint, {_rows(*after[name])} now"


def _rows(number: int | None, digest: str) -> str:
    if number is None or digest == _UNSTABLE:
        return digest if number is None else f"{number} {digest}"
    return f"{number} rows with the digest {digest}"


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Rows may be transformed as they are read, with numbers drawn from the global generators."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def _compared(key: str, value: Any) -> Any:
    if key in NAMES:
        return _last_parts(value)
    if key == "mixture_by" and str(value).startswith(FILE):  # it may lie elsewhere
        return FILE + PurePath(str(value)).name
    if key == "component_name":  # with its package or without it: which component it is, the checkpoint knows
        return split_name(str(value))[1]
    return names_in(value) or _plain(value) if key in LISTS else _plain(value)


def _last_parts(value: Any) -> list[str]:
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    return [PurePath(str(part).strip()).name for part in parts]


def _shown(values: Mapping[str, Any], key: str) -> str:
    return str(values[key]) if key in values else "not set"
