"""Refuses engines that shard the weights, for selectors that need them whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataflex.core.errors import Problem
from dataflex.scoring.models import sharding_engine

if TYPE_CHECKING:
    from accelerate import Accelerator


def whole_weights(accelerator: Accelerator | None, why: str) -> Problem | None:
    """Returns a problem where a rank holds only a part of the weights: FSDP, DeepSpeed ZeRO-3, Megatron-LM.

    Args:
        accelerator: The run's accelerator; None means a single process.
        why: What the selector does with whole weights, as in "it moves weights".
    """
    engine = sharding_engine(accelerator)
    if engine is None:
        return None
    way_out = "use DDP or DeepSpeed ZeRO-1 or ZeRO-2, train a LoRA adapter to save memory, or use another selector"
    return Problem("engine", f"{engine} shards the weights over the ranks, and {why}", way_out)
