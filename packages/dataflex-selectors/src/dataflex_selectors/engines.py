"""Engines that some selectors cannot run under."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate import DistributedType
from dataflex.core.errors import Problem

if TYPE_CHECKING:
    from accelerate import Accelerator

_ZERO_3 = 3  # the stage of DeepSpeed's ZeRO from which on weights are sharded too


def whole_weights(accelerator: Accelerator | None, why: str) -> Problem | None:
    """Returns a problem where a rank holds only a part of the weights: FSDP, DeepSpeed ZeRO-3, Megatron-LM.

    Args:
        accelerator: The run's accelerator; None means a single process.
        why: What the selector does with whole weights, as in "it moves weights".
    """
    engine = _sharding(accelerator)
    if engine is None:
        return None
    way_out = "use DDP or DeepSpeed ZeRO-1 or ZeRO-2, train a LoRA adapter to save memory, or use another selector"
    return Problem("engine", f"{engine} shards the weights over the ranks, and {why}", way_out)


def _sharding(accelerator: Accelerator | None) -> str | None:
    if accelerator is None:
        return None
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        stage = int(accelerator.state.deepspeed_plugin.zero_stage)
        return f"DeepSpeed ZeRO-{stage}" if stage >= _ZERO_3 else None
    sharded = {DistributedType.FSDP: "FSDP", DistributedType.MEGATRON_LM: "Megatron-LM"}
    return sharded.get(accelerator.distributed_type)
