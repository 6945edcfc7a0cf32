"""Every private name of another package that dataflex overrides or uses, and the versions in which it was seen.

A private name may go with any release, and an override of a name that is gone does nothing and says nothing. So each is
looked for before a run starts. ``tests/unit/test_relied_on.py`` finds the private names in our own source and compares
them with this table, and looks for each of its names in the installed packages.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Iterable

from packaging.version import Version

from dataflex.core.errors import IncompatiblePackagesError
from dataflex.discovery.installed import version_of

SEEN = {
    "transformers": ("4.51.0", "5.24.0"),
    "accelerate": ("1.3.0", "1.15.0"),
    "torch": ("2.6.0", "2.15.0"),
    "datasets": ("3.0.0", "5.2.0"),
    "llamafactory": ("0.9.4", "0.9.5"),
    "trl": ("0.18.0", "1.16.0"),
}
"""Package -> the lowest and the highest version in which all of its names below were seen."""

TRAINING: dict[str, tuple[str, ...]] = {
    "transformers.Trainer": (
        "_get_collator_with_removed_columns",
        "_get_output_dir",
        "_get_train_sampler",
        "_load_from_checkpoint",
        "_load_optimizer_and_scheduler",
        "_maybe_log_save_evaluate",
        "_prepare_inputs",
        "_remove_unused_columns",
        "_save",
        "_save_checkpoint",
        "_train_batch_size",
        # not private, but documented nowhere
        "compute_loss_func",
        "get_batch_samples",
        "label_smoother",
    ),
    "transformers.AutoModelForImageTextToText": ("_model_mapping",),
    "accelerate.Accelerator": ("_dataloaders",),
    "torch.nn.Module": ("_compiled_call_impl",),
    "torch._dynamo": ("OptimizedModule",),
    "torch.utils._python_dispatch": ("TorchDispatchMode",),
    "torch.utils._pytree": ("TreeSpec", "tree_flatten", "tree_unflatten"),
    "torch.distributed.fsdp.FullyShardedDataParallel": ("_handle",),
    "torch.distributed.fsdp._flat_param.FlatParameter": ("_param_infos", "_shapes"),
    "datasets.Dataset": ("_indices",),
}
"""Owner -> names of it, for every dynamic run."""

TRL: dict[str, tuple[str, ...]] = {"trl.SFTTrainer": ("_prepare_dataset",)}
"""The same for TRL, where it trains. A release without the name refuses the mixture itself, for what it is."""

OPTIONAL: dict[str, tuple[str, ...]] = {
    "trl.DPOTrainer": ("_is_vision_dataset", "_precompute_ref_logps"),
    "trl.KTOTrainer": ("_compute_kl_logps", "_is_vision_dataset", "_precompute_ref_logps"),
}
"""The same, of what newer releases have and older ones do elsewhere: :mod:`dataflex.upstream.trl_datasets`
and :mod:`dataflex.upstream.stage_loss` know both."""

_SAMPLING = ("_buffered_inputs", "_calculate_rewards", "_get_train_sampler", "_prepare_inputs", "_step")
_NOT_PRIVATE = ("num_generations", "num_iterations", "reward_weights", "shuffle_dataset")
ROLLOUTS: dict[str, tuple[str, ...]] = dict.fromkeys(("trl.GRPOTrainer", "trl.RLOOTrainer"), _SAMPLING + _NOT_PRIVATE)
"""The same, of the trainers that sample answers: :mod:`dataflex.upstream.online_trainers`."""

SINCE: dict[str, tuple[str, tuple[str, ...]]] = {
    "trl.trainer.utils": ("1.15.0", ("FusedCausalLMOutput",)),
    "trl.trainer.utils.FusedCausalLMOutput": ("1.15.0", ("log_probs",)),
    "transformers.Trainer": ("5.12.0", ("_loss_shifts_labels",)),
}
"""Owner -> a release, and names that are relied on from there on; an older release does without. A name that is looked
for in none would make a weighter weigh nothing."""

DEEPSPEED: dict[str, tuple[str, ...]] = {"transformers.integrations.deepspeed": ("_hf_deepspeed_config_weak_ref",)}
"""Module -> names of it that are replaced while a model is loaded beside the one that is trained."""

LLAMAFACTORY: dict[str, tuple[str, ...]] = {
    "llamafactory.train.sft.workflow": ("CustomSeq2SeqTrainer", "get_dataset", "plot_loss", "calculate_tps"),
    "llamafactory.train.pt.workflow": ("CustomTrainer", "get_dataset", "plot_loss"),
    "llamafactory.train.rm.workflow": ("PairwiseTrainer", "get_dataset", "plot_loss"),
    "llamafactory.train.dpo.workflow": ("get_dataset", "plot_loss", "calculate_tps"),
    "llamafactory.train.kto.workflow": ("CustomKTOTrainer", "get_dataset", "plot_loss"),
    "llamafactory.train.tuner": ("get_train_args", "PissaConvertCallback", "run_exp", "_training_function"),
    "llamafactory.hparams.parser": ("get_last_checkpoint",),
    "llamafactory.model.loader": ("apply_liger_kernel",),
    "llamafactory.data.loader": (
        "_get_dataset_processor",
        "_get_merged_dataset",
        "_get_preprocessed_dataset",
        "_load_single_dataset",
        "align_dataset",
        "get_dataset_list",
        "load_from_disk",
        "split_dataset",
    ),
}
"""Module -> names of it that a dynamic run through LLaMA-Factory replaces or calls."""

RAY = ({"Worker", "_ray_training_function"}, {"get_ray_trainer"})
"""The names of ``llamafactory.train.tuner`` on the way to Ray: those of 0.9.5, or those of 0.9.4."""


@functools.cache
def require_training() -> None:
    """Looks for the names of :data:`TRAINING` and :data:`DEEPSPEED`, and those of later releases of transformers.

    Raises:
        IncompatiblePackagesError: A name is gone.
    """
    _require(missing(TRAINING) + missing(DEEPSPEED) + missing(later("transformers")))


@functools.cache
def require_fused_head() -> None:
    """Looks for the names of :data:`SINCE` in TRL. Imports TRL.

    Raises:
        IncompatiblePackagesError: A name is gone.
    """
    _require(missing(later("trl")))


@functools.cache
def require_rollouts(trainer: str) -> None:
    """Looks for the names of :data:`ROLLOUTS`. Imports TRL.

    Args:
        trainer: The trainer, as that table has it.

    Raises:
        IncompatiblePackagesError: A name is gone.
    """
    _require(missing({trainer: ROLLOUTS[trainer]}))


def later(package: str) -> dict[str, tuple[str, ...]]:
    """Returns owner -> names of the part of :data:`SINCE` that the installed release of a package is to have."""
    found = version_of(package)
    return {
        owner: names
        for owner, (since, names) in SINCE.items()
        if owner.partition(".")[0] == package and found is not None and Version(found) >= Version(since)
    }


@functools.cache
def require_llamafactory() -> None:
    """Looks for the names of :data:`LLAMAFACTORY` and of one way to Ray. Imports LLaMA-Factory.

    Raises:
        IncompatiblePackagesError: A name is gone.
    """
    tuner = "llamafactory.train.tuner"
    gone = missing(LLAMAFACTORY)
    ways = [missing({tuner: tuple(sorted(way))}) for way in RAY]
    _require(gone or ([] if [] in ways else ways[0]))


def missing(table: dict[str, tuple[str, ...]]) -> list[str]:
    """Returns the names of a table that the installed packages do not have, as ``owner.name``."""
    return [f"{owner}.{name}" for owner, names in table.items() for name in names if not has(owner, name)]


def has(owner: str, name: str) -> bool:
    """Returns whether a module or a class has a name; of a class, one that its constructor gives to objects counts."""
    found = _find(owner)
    if found is None or hasattr(found, name):
        return found is not None
    return inspect.isclass(found) and any(_given(cls, name) for cls in found.__mro__)


def _given(cls: type, name: str) -> bool:
    """Whether the class declares the attribute, or assigns it in its own constructor."""
    if name in vars(cls).get("__annotations__", {}):
        return True
    constructor = vars(cls).get("__init__")
    if not inspect.isfunction(constructor):
        return False
    try:
        source = inspect.getsource(constructor)
    except OSError:  # installed without its source: what the constructor names, it is taken to assign
        return name in constructor.__code__.co_names
    return re.search(rf"\bself\.{name}\b[^=\n]*=", source) is not None


def _find(owner: str) -> object | None:
    """Returns the module or class, or None."""
    try:
        return importlib.import_module(owner)
    except ImportError:  # no module, or one that the installed packages cannot import
        module, _, name = owner.rpartition(".")
        return getattr(_find(module), name, None) if module else None


def _require(gone: Iterable[str]) -> None:
    names = sorted(gone)
    if not names:
        return
    packages = sorted({name.partition(".")[0] for name in names})
    lowest = {package: SEEN[package][0] for package in packages}
    for owner, (since, later_names) in SINCE.items():
        if any(f"{owner}.{name}" in names for name in later_names):
            lowest[owner.partition(".")[0]] = since
    seen = ", ".join(
        f"{package} {lowest[package]} to {SEEN[package][1]} (now {version_of(package)})" for package in packages
    )
    raise IncompatiblePackagesError(
        f"dataflex relies on {', '.join(names)}, which the installed packages do not have; seen in {seen} -> install a "
        "version between these, or a newer dataflex-core"
    )
