"""The engines of the tests, and what makes accelerate shard on the CPU, where it would copy the model instead."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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


@dataclass
class Engine:
    """How an engine is asked for, and how it shows that it is the one.

    Attributes:
        wraps: What the class of the wrapped model is called.
        args: Training arguments.
        environ: Environment variables.
        needs: The package it comes from, beside torch.
        least: The lowest version of that package.
        shards: Whether accelerate has to be told to shard on a CPU.
        moments: Whether the optimizer's moments can be read parameter by parameter.
    """

    wraps: str
    args: dict[str, Any] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    needs: str | None = None
    least: str | None = None
    shards: bool = False
    moments: bool = True


def fsdp(version: int, layer: str = "LlamaDecoderLayer") -> dict[str, Any]:
    """Returns the training arguments of FSDP."""
    config = {"version": version, "transformer_layer_cls_to_wrap": layer, "sync_module_states": False}
    config["state_dict_type"] = "SHARDED_STATE_DICT"  # as below; transformers 5.24 reads it here alone
    return {"fsdp": "full_shard auto_wrap", "fsdp_config": config}


def zero(stage: int) -> dict[str, Any]:
    """Returns the training arguments of DeepSpeed."""
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    config = dict.fromkeys(sizes, "auto") | {"zero_allow_untested_optimizer": True}
    return {"use_cpu": False, "deepspeed": config | {"zero_optimization": {"stage": stage}}}


# On a CPU FSDP 1 cannot save a full state: torch 2.11 crashes, 2.15 saves the second moment as the first one too.
SHARDED = {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
CPU = {"DS_ACCELERATOR": "cpu"}
ENGINES = {
    "DDP": Engine("DistributedDataParallel"),
    "FSDP 1": Engine("FullyShardedDataParallel", fsdp(1), SHARDED, shards=True, moments=False),
    "FSDP 2": Engine("FSDPLlamaForCausalLM", fsdp(2), SHARDED, "accelerate", "1.6.0", shards=True),
    "DeepSpeed ZeRO-2": Engine("DeepSpeedEngine", zero(2), CPU, needs="deepspeed"),
    "DeepSpeed ZeRO-3": Engine("DeepSpeedEngine", zero(3), CPU, needs="deepspeed"),
}
