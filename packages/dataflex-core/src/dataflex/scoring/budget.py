"""How many tokens to score at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dataflex.scoring.models import pretrained_models

if TYPE_CHECKING:
    from accelerate import Accelerator

# A CPU is busy with a few hundred tokens already, and slower again where the activations of a batch leave its cache:
# for 5 million parameters, 1024 to 3072 tokens took the same time within 3 %, 4096 took 8 % more and 16384 half as
# much again.
CPU_TOKENS = 2048
GPU_TOKENS = 16384  # enough rows of any length to fill a large GPU; more gains little and takes memory
_LEAST_TOKENS = 1024
_LOGIT_BYTES = 6  # bf16, and a float32 copy where mixed precision converts the outputs
_MEMORY_SHARE = 8  # training's weights, moments and cached blocks have the rest of the GPU


def default_token_budget(model: torch.nn.Module) -> int:
    """Returns the token budget for the device that holds ``model``.

    It depends on the machine alone and not on the memory free at the moment, so that a resumed run batches the same
    rows.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return CPU_TOKENS
    vocabulary = max((m.config.get_text_config().vocab_size for m in pretrained_models(model)), default=0)
    memory: int = torch.cuda.get_device_properties(device).total_memory
    return max(_LEAST_TOKENS, min(GPU_TOKENS, memory // _MEMORY_SHARE // (_LOGIT_BYTES * max(1, vocabulary))))


def agreed_budget(token_budget: int, accelerator: Accelerator | None) -> int:
    """Returns the smallest budget over all ranks: their batches must be the same, and GPUs may differ. Collective."""
    if accelerator is None or accelerator.num_processes == 1:
        return token_budget
    mine = torch.tensor([token_budget], device=accelerator.device)
    return int(torch.as_tensor(accelerator.gather(mine)).min())
