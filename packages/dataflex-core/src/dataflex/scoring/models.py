"""Finding the model inside what the engines and PEFT wrap around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from accelerate import DistributedType
from torch._dynamo import OptimizedModule
from transformers import PreTrainedModel

from dataflex.core.errors import ComponentError

if TYPE_CHECKING:
    from accelerate import Accelerator

# In these engines a forward is a collective call, so a rank cannot make one more than the others.
_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def pretrained_models(model: torch.nn.Module) -> list[PreTrainedModel]:
    """Returns the ``transformers`` models inside ``model``, outermost first; empty for a plain module."""
    return [module for module in model.modules() if isinstance(module, PreTrainedModel)]


def output_embeddings(models: Sequence[PreTrainedModel]) -> torch.nn.Module | None:
    """Returns the output layer of the first of ``models`` that names one."""
    found = (base.get_output_embeddings() for base in models)  # type: ignore[no-untyped-call]
    return next((layer for layer in found if layer is not None), None)


def is_compiled(model: torch.nn.Module) -> bool:
    """Whether ``torch.compile`` is in play: it would trace a hook into code that is used again without it."""
    return any(isinstance(m, OptimizedModule) or m._compiled_call_impl is not None for m in model.modules())


def require_causal(models: Sequence[PreTrainedModel]) -> None:
    """Refuses an encoder-decoder.

    Raises:
        ComponentError: One of ``models`` is one.
    """
    if any(base.config.is_encoder_decoder for base in models):
        raise ComponentError(
            f"{type(models[0]).__name__} is an encoder-decoder; causal (decoder-only) models are scored -> use a "
            "strategy that does not score the model"
        )


def is_sharded(accelerator: Accelerator | None) -> bool:
    """Returns whether a forward is a collective call."""
    return accelerator is not None and accelerator.num_processes > 1 and accelerator.distributed_type in _SHARDED
