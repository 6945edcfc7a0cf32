"""What an engine must be before a dynamic run starts on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate import DistributedType

from dataflex.core.errors import ConfigError

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


def _on_xla(args: TrainingArguments) -> bool:
    """Whether torch_xla shards, which accelerate does not count as FSDP."""
    return isinstance(args.fsdp_config, dict) and bool(args.fsdp_config.get("xla"))
