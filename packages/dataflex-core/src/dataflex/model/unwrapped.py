"""Finding the model inside what the engines and PEFT wrap around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate import DistributedType
from torch._dynamo import OptimizedModule
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_peft_available

from dataflex.core.errors import ComponentError

if TYPE_CHECKING:
    from accelerate import Accelerator

_SHARDING = {DistributedType.FSDP: "FSDP", DistributedType.MEGATRON_LM: "Megatron-LM"}
_ZERO_3 = 3  # the stage of DeepSpeed's ZeRO from which on weights are sharded too


def pretrained_models(model: torch.nn.Module) -> list[PreTrainedModel]:
    """Returns the ``transformers`` models inside ``model``, outermost first; empty for a plain module."""
    return [module for module in model.modules() if isinstance(module, PreTrainedModel)]


def without_adapter(model: Any) -> Any:
    """Returns the model inside of a PEFT wrapper, or the model itself."""
    if not is_peft_available():
        return model
    from peft import PeftModel  # here, because dataflex-core does not depend on it

    return model.get_base_model() if isinstance(model, PeftModel) else model


def output_embeddings(models: Sequence[PreTrainedModel]) -> torch.nn.Module | None:
    """Returns the output layer of the first of ``models`` that names one."""
    found = (base.get_output_embeddings() for base in models)  # type: ignore[no-untyped-call]
    return next((layer for layer in found if layer is not None), None)


def beside_text(model: torch.nn.Module) -> set[torch.nn.Module]:
    """Returns the modules of a model that see images or sounds and no tokens: vision towers and what projects them.

    Empty for a model of text alone. The model of the text is told by its configuration.
    """
    models = pretrained_models(model)
    kinds = {base.config.get_text_config().model_type for base in models[:1]}
    kinds -= {base.config.model_type for base in models[:1]}  # then it is a model of text
    texts = [base for base in models if base.config.model_type in kinds]
    outputs = output_embeddings(models)
    seen = {inner for text in texts for inner in text.modules()} | set(outputs.modules() if outputs is not None else ())
    return {inner for inner in models[0].modules() if inner not in seen} if texts else set()


def is_compiled(model: torch.nn.Module) -> bool:
    """Whether the model is compiled; compiled code would keep a removed hook."""
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


def sharding_engine(accelerator: Accelerator | None) -> str | None:
    """Returns the engine that leaves each rank a part of the weights, or None where every rank has all of them.

    FSDP, DeepSpeed ZeRO-3 and Megatron-LM do. ZeRO-1 and ZeRO-2 shard the optimizer and the gradients alone.
    """
    if accelerator is None:
        return None
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        stage = int(accelerator.state.deepspeed_plugin.zero_stage)
        return f"DeepSpeed ZeRO-{stage}" if stage >= _ZERO_3 else None
    return _SHARDING.get(accelerator.distributed_type)


def is_sharded(accelerator: Accelerator | None) -> bool:
    """Returns whether a forward is a collective call, so that a rank cannot make one more than the others."""
    return accelerator is not None and accelerator.num_processes > 1 and sharding_engine(accelerator) is not None
