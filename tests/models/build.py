"""A tiny model of any class, and the rows that it is tried on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from dataflex.testing import TokenRows, pad_collate
from torch import nn

from tests.models.classes import Tried
from tests.models.overrides import INPUTS, OVERRIDES
from tests.models.shrink import tiny_config

MOST_PARAMETERS = 10_000_000
LENGTHS = [5, 17, 9, 12]
WORDS = 64


class NotTinyError(RuntimeError):
    """The configuration has a size that no rule makes small."""


def tiny(tried: Tried) -> nn.Module:
    """Returns a model of the class with weights off their initial values: at those, many gradients are 0.

    Raises:
        Exception: Whatever transformers raises.
    """
    config = tiny_config(tried.config_class, OVERRIDES.get(tried.model_type, {}))
    for part in (config, config.get_text_config(decoder=True)):
        part.use_cache = False  # as models are trained; before 5.6 another one in Gemma 3n (transformers 45312)
    with torch.device("meta"):
        size = sum(p.numel() for p in tried.model_class(config).parameters())
    if size > MOST_PARAMETERS:
        raise NotTinyError(f"{size} parameters")
    torch.manual_seed(0)
    return moved(tried.model_class(config).float()).eval()


def moved(model: nn.Module, seed: int = 1) -> nn.Module:
    """Returns the model with every trainable number moved by a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def rows() -> TokenRows:
    """Returns rows of different lengths, so that all but one are padded."""
    return TokenRows(len(LENGTHS), vocab_size=WORDS, lengths=LENGTHS)


class Collator:
    """Pads on the right, and adds what the class wants beside tokens.

    Args:
        model_type: Type of the model.
    """

    def __init__(self, model_type: str) -> None:
        self._names = INPUTS.get(model_type, ())

    def __call__(self, given: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = pad_collate(given)
        return batch | {name: torch.zeros_like(batch["input_ids"]) for name in self._names}
