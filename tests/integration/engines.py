"""Makes accelerate shard on the CPU, where it would use plain data parallelism instead."""

from __future__ import annotations

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def shard_on_cpu() -> None:
    """Lets the next trainer of this process use FSDP on the CPU.

    accelerate looks at its FSDP plugin only on machines with an accelerator (``AcceleratorState.__init__`` lists
    MULTI_GPU, MULTI_NPU, ... and not MULTI_CPU) and there is no setting for it. torch itself can: gloo gathers and
    scatters CPU tensors. So the state says MULTI_GPU until accelerate has chosen; devices and backend stay the CPU's.
    """
    AcceleratorState._reset_state()
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    PartialState._shared_state["device"] = torch.device("cpu")  # FSDP 1 takes cpu:0 for another device than cpu
