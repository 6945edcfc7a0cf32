"""How many tokens to score at once, and what a device that ran out of memory has taught.

A forward pass without gradients holds the activations of one layer and the logits; one with gradients holds those of
all layers, so it gets a budget of its own. Both depend on the machine and the model alone and not on the memory that is
free at the moment, so that a resumed run batches the same rows.

What does not fit all the same is halved, and the limit is kept for the rest of the process: for the model and the kind
of pass, so that the next pass does not run out of memory again.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch

from dataflex.model.unwrapped import output_embeddings, pretrained_models

if TYPE_CHECKING:
    from accelerate import Accelerator

# A CPU is busy with a few hundred tokens already, and slower again where the activations of a batch leave its cache.
# 135 million parameters, one thread: forward in bf16 512 tokens 1.65 s, 1024 1.53 s, in fp32 4.6 and 4.7 s; there and
# back in fp32 512 tokens 5.6 s, 1024 6.6 s. 5 million parameters, forward: 1024 to 3072 tokens within 3 %.
CPU_TOKENS = 1024
CPU_GRADIENT_TOKENS = 512  # activations of all layers
GPU_TOKENS = 16384  # enough rows of any length to fill a large GPU; more gains little and takes memory
_LEAST_TOKENS = 1024
_LEAST_GRADIENT_TOKENS = 256
_LOGIT_BYTES = 6  # bf16, and a float32 copy where mixed precision converts the outputs
_GRADIENT_LOGIT_BYTES = 14  # the same, and their gradients in both types
_MEMORY_SHARE = 8  # training's weights, moments and cached blocks have the rest of the device

_limits: weakref.WeakKeyDictionary[torch.nn.Module, dict[bool, int]] = weakref.WeakKeyDictionary()


def default_token_budget(model: torch.nn.Module, *, gradients: bool = False, device: torch.device | None = None) -> int:
    """Returns the token budget for the device that computes.

    Args:
        model: The model.
        device: Where it computes, which is not where offloaded weights lie; None for where its first parameter is.
        gradients: Whether the pass goes back through the model, and so keeps the activations of all layers.
    """
    device = next(model.parameters()).device if device is None else device
    if device.type in ("cpu", "meta"):
        return CPU_GRADIENT_TOKENS if gradients else CPU_TOKENS
    vocabulary = max((m.config.get_text_config().vocab_size for m in pretrained_models(model)), default=0)
    token_bytes = (_GRADIENT_LOGIT_BYTES if gradients else _LOGIT_BYTES) * max(1, vocabulary)
    if gradients:
        token_bytes += _activation_bytes(model)
    least = _LEAST_GRADIENT_TOKENS if gradients else _LEAST_TOKENS
    return max(least, min(GPU_TOKENS, device_memory(device) // _MEMORY_SHARE // token_bytes))


def _activation_bytes(model: torch.nn.Module) -> int:
    """Returns about how much a backward pass keeps of one token: what each linear layer is given, and what it gives.

    A quantised weight has a byte or less for a number, and the activations around it two. Experts that are stacked in
    one (E, in, out) are no linear layers; a token goes through a few of them.
    """
    models = pretrained_models(model)
    outputs = output_embeddings(models)
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not outputs]
    found = sum((m.in_features + m.out_features) * max(2, m.weight.element_size()) for m in layers)
    each = max((int(m.config.to_dict().get("num_experts_per_tok") or 1) for m in models), default=1)
    stacked = [p for m in models for p in m.parameters() if p.ndim == 3]
    return found + each * sum(sum(p.shape[1:]) * max(2, p.element_size()) for p in stacked)


def device_memory(device: torch.device) -> int:
    """Returns the bytes of memory that a device of any kind but a CPU has: CUDA, XPU, NPU, MPS."""
    if device.type == "mps":  # it shares the machine's memory, and has no properties
        return torch.mps.recommended_max_memory()
    properties = torch.get_device_module(device).get_device_properties(device)
    return int(properties.total_memory)


def release_memory(device: torch.device) -> None:
    """Gives cached blocks of a device back, so that smaller ones can be made of them."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether a device had no memory left. NPU and MPS have no class of their own for that error."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "out of memory" in str(error)
    )


def agreed_budget(token_budget: int, accelerator: Accelerator | None) -> int:
    """Returns the smallest budget over all ranks: their batches must be the same, and GPUs may differ. Collective."""
    if accelerator is None or accelerator.num_processes == 1:
        return token_budget
    mine = torch.tensor([token_budget], device=accelerator.device)
    return int(torch.as_tensor(accelerator.gather(mine)).min())


def learned_limit(model: torch.nn.Module, gradients: bool) -> int | None:
    """Returns the most tokens that fitted into memory after a pass of this kind had run out of it; None: none has."""
    return _limits.get(model, {}).get(gradients)


def learn_limit(model: torch.nn.Module, gradients: bool, tokens: int) -> None:
    """Keeps the most tokens of a batch for later passes of the process."""
    known = _limits.setdefault(model, {})
    known[gradients] = min(tokens, known.get(gradients, tokens))
