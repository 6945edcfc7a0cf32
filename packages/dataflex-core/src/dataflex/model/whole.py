"""A model beside the one that is trained, loaded whole on every rank."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.integrations import deepspeed

_ONE_RANK_READS = "FSDP_CPU_RAM_EFFICIENT_LOADING"


@contextmanager
def whole_models() -> Iterator[None]:
    """Inside of it, ``from_pretrained`` gives every rank all of a model, whichever engine trains.

    Under DeepSpeed ZeRO-3 transformers shards what it loads, and under FSDP with ``cpu_ram_efficient_loading`` it reads
    the weights on one rank alone; both leave it to the engine to bring them together again, which an engine does for
    the model that it trains and for no other. Makes no collective call.
    """
    # A weak reference to the configuration is how transformers knows of ZeRO-3; it has no switch to look away.
    with patch.object(deepspeed, "_hf_deepspeed_config_weak_ref", None), patch.dict(os.environ):
        os.environ.pop(_ONE_RANK_READS, None)
        yield


def load_whole(path: str, **options: Any) -> PreTrainedModel:
    """Returns a model that is frozen beside the run's: with images, where LLaMA-Factory would train it with images.

    Args:
        path: As ``from_pretrained`` takes it.
        **options: The same.

    Raises:
        OSError: There is no such model.
        ValueError: It is no model that predicts the next token.
    """
    auto: Any = AutoConfig
    seeing: Any = AutoModelForImageTextToText
    with whole_models():
        sees = type(auto.from_pretrained(path)) in seeing._model_mapping
        found: PreTrainedModel = (seeing if sees else AutoModelForCausalLM).from_pretrained(path, **options)
    return found


def full_shape(parameter: torch.Tensor) -> torch.Size:
    """Returns the shape of a parameter, also where DeepSpeed ZeRO-3 has left an empty one in its place."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
