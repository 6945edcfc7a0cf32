"""dataflex's part of a checkpoint: the position in the plan, the state of the component, and whose checkpoint it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from dataflex.core.errors import CheckpointError
from dataflex.run.completeness import TRAINER_STATE
from dataflex.run.files import STATE, replacing

_ARRAY = "__numpy__"


def save_state(folder: str | Path, state: Mapping[str, Any]) -> None:
    """Writes the state into a checkpoint folder, whole or not at all."""
    with replacing(Path(folder) / STATE) as temporary:
        torch.save(_packed(dict(state)), temporary)


def load_state(folder: str | Path) -> dict[str, Any]:
    """Reads what :func:`save_state` wrote. Runs no code from the file.

    Raises:
        CheckpointError: The checkpoint holds no state of dataflex, or an unreadable one.
    """
    path = Path(folder) / STATE
    if not path.exists():
        raise CheckpointError(
            f"{folder} holds no {STATE}: it is not a checkpoint of a dynamic run -> resume it with train_type: "
            "static, or load its weights with model_name_or_path / adapter_name_or_path and start anew"
        )
    try:
        state: dict[str, Any] = _unpacked(torch.load(path, map_location="cpu", weights_only=True))
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}) -> resume from an earlier checkpoint") from error
    return state


def require_step(state: Mapping[str, Any], folder: str | Path) -> None:
    """Refuses a state that was saved at another step than the rest of the checkpoint.

    Raises:
        CheckpointError: Naming both steps.
    """
    trainer = Path(folder) / TRAINER_STATE
    try:
        step = json.loads(trainer.read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{trainer} cannot be read ({error}) -> resume from an earlier checkpoint") from error
    if state.get("step") != step:
        raise CheckpointError(
            f"{folder} was put together from two checkpoints: {STATE} is of step {state.get('step')}, {TRAINER_STATE} "
            f"of step {step} -> resume from another checkpoint"
        )


def _packed(value: Any) -> Any:
    """Replaces arrays by tensors, as ``torch.load(weights_only=True)`` reads those without running code."""
    if isinstance(value, np.ndarray):
        return {_ARRAY: torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _packed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_packed(item) for item in value]
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_ARRAY}:
            return value[_ARRAY].numpy()
        return {key: _unpacked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpacked(item) for item in value]
    return value
