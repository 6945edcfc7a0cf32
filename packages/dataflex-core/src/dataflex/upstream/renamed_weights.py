"""Weights of a checkpoint whose names are not those of the model: mixtures of experts in transformers 5.

There a model keeps the experts of a layer in one tensor, and a checkpoint each expert by itself, as on the hub.
``from_pretrained`` translates; ``transformers.Trainer`` reads a checkpoint by name, finds no such weights in the model,
and trains on with those that the run began with (seen with transformers 5.6).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from dataflex.model.whole import whole_models

FILE = "model.safetensors"
INDEX = f"{FILE}.index.json"


def holds_renamed_weights(model: torch.nn.Module, checkpoint: str) -> bool:
    """Returns whether a checkpoint holds weights of ``model`` under names that the model does not know."""
    return isinstance(model, PreTrainedModel) and bool(_names(Path(checkpoint)) - model.state_dict().keys())


def load_renamed_weights(model: torch.nn.Module, checkpoint: str) -> None:
    """Reads the checkpoint as a model of its own and copies its weights. Every rank calls it for itself.

    Args:
        model: A whole model, not sharded.
        checkpoint: The folder.
    """
    assert isinstance(model, PreTrainedModel)
    with whole_models(), torch.random.fork_rng():  # making a model draws random numbers
        found = type(model).from_pretrained(checkpoint)
    model.load_state_dict(found.state_dict())


def _names(folder: Path) -> set[str]:
    if (folder / INDEX).exists():
        return set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"])
    if not (folder / FILE).exists():
        return set()
    with safe_open(folder / FILE, framework="pt") as file:
        return set(file.keys())
