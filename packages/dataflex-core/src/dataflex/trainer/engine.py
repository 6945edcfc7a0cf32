"""What an engine and its arguments must be before a dynamic run starts on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate import DistributedType

from dataflex.config.checks.loader_keys import CONFIG, KEYS, flat, loader_problems
from dataflex.core.errors import ConfigError, refuse

if TYPE_CHECKING:
    from transformers import TrainingArguments


def require_engine(args: TrainingArguments, found: DistributedType) -> None:
    """Refuses a run whose engine was replaced without a word: on a CPU, accelerate takes DDP where it cannot shard.

    Args:
        args: What was asked for.
        found: What accelerate runs.

    Raises:
        ConfigError: They differ.
    """
    if args.fsdp and not _on_xla(args) and found != DistributedType.FSDP:
        raise ConfigError(
            f"fsdp was asked for, but accelerate runs {found.value} on this machine: it shards a model on GPUs and "
            "other accelerators only -> train there, or leave fsdp out, which copies the model to each rank (DDP)"
        )
    if args.deepspeed and found != DistributedType.DEEPSPEED:
        raise ConfigError(
            f"deepspeed was asked for, but accelerate runs {found.value} on this machine -> leave use_cpu out "
            "(DS_ACCELERATOR=cpu in the environment trains on the CPU), or leave deepspeed out"
        )


def require_loader(args: TrainingArguments, train_type: str, plans: bool = True) -> None:
    """Refuses arguments of the train dataloader that a dynamic run cannot follow, in the words of ``validate``.

    Args:
        args: The arguments.
        train_type: That of the run.
        plans: Whether a run of several axes plans its rows.

    Raises:
        ConfigError: There are such.
    """
    given = {key: value for key, value in vars(args).items() if key in KEYS}
    refuse(loader_problems(train_type, flat(given, vars(vars(args)[CONFIG])), plans))


def computes_before_training(found: DistributedType) -> bool:
    """Returns whether a model computes when its trainer is made; engines that shard weights make it ready later."""
    return found not in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def require_one_model(args: TrainingArguments, who: str) -> None:
    """Refuses nn.DataParallel for a component that must see what the model computes: its copies are out of sight.

    transformers wraps the model in it where one process has several GPUs.

    Raises:
        ConfigError: This is such a process.
    """
    if args.n_gpu > 1:
        raise ConfigError(
            f"one process would train on {args.n_gpu} GPUs (nn.DataParallel), where {who} does not see the losses of "
            "rows -> start a process for each with torchrun or FORCE_TORCHRUN=1, or show it one GPU "
            "(CUDA_VISIBLE_DEVICES)"
        )


def _on_xla(args: TrainingArguments) -> bool:
    """Whether torch_xla shards, which accelerate does not count as FSDP."""
    return isinstance(args.fsdp_config, dict) and bool(args.fsdp_config.get("xla"))
