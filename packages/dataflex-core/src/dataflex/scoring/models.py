"""Finding the model inside what the engines and PEFT wrap around it."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


def pretrained_models(model: torch.nn.Module) -> list[PreTrainedModel]:
    """Returns the ``transformers`` models inside ``model``, outermost first; empty for a plain module."""
    return [module for module in model.modules() if isinstance(module, PreTrainedModel)]
