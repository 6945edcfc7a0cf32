"""dataflex's part of a checkpoint: the position in the plan, the state of the component, and whose checkpoint it is."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.errors import CheckpointError, ComponentError
from dataflex.core.files import STATE, replacing
from dataflex.run.completeness import TRAINER_STATE

_ARRAY = "__numpy__"
_PLAIN = (type(None), bool, int, float, str, torch.Tensor, torch.nn.Parameter)
_DEEPEST = 64
_ALLOWED = "None, booleans, numbers, texts, NumPy arrays of numbers, tensors, and lists and dicts of these"
# what reading bytes that torch did not write so can raise
_UNREADABLE = (
    UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
    AssertionError, ArithmeticError, MemoryError, struct.error,
)  # fmt: skip


class UnsavableError(ValueError):
    """A state holds what a checkpoint cannot give back; the message says where, and what it is."""


def require_savable(state: Any, who: str) -> None:
    """Checks what a component's ``state_dict`` returned, before a checkpoint depends on it.

    Args:
        state: What it returned.
        who: The component, for the message.

    Raises:
        ComponentError: Naming the key of what cannot be saved and read back.
    """
    try:
        if not isinstance(state, dict):
            raise UnsavableError(f" is of type {_type(state)}, not dict")
        _packed(state)
    except UnsavableError as error:
        raise ComponentError(
            f"{who}: its state_dict(){error}, and could not be resumed from; allowed: {_ALLOWED} -> convert it there, "
            "and back in load_state_dict"
        ) from None


def save_state(folder: str | Path, state: Mapping[str, Any]) -> None:
    """Writes the state into a checkpoint folder, whole or not at all.

    Raises:
        UnsavableError: It holds what :func:`load_state` could not give back.
    """
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
        state = _unpacked(torch.load(path, map_location="cpu", weights_only=True))
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{path} cannot be read ({_reason(error)}) -> resume from an earlier checkpoint"
        ) from error
    if not isinstance(state, dict) or not isinstance(state.get("identity"), dict):
        raise CheckpointError(f"{path} does not hold the state of a run -> resume from an earlier checkpoint")
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


def _reason(error: Exception) -> str:
    """Returns the one line of torch's advice that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if line.startswith("WeightsUnpickler error")), lines[0])


def _packed(value: Any, path: str = "", depth: int = 0) -> Any:
    """Replaces arrays by tensors, as ``torch.load(weights_only=True)`` reads those without running code.

    Raises:
        UnsavableError: What that does not read.
    """
    if depth > _DEEPEST:
        raise UnsavableError(f"{path[:80]}... is nested more than {_DEEPEST} deep")
    if isinstance(value, np.ndarray):
        return {_ARRAY: _as_tensor(value, path)}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        return {_key(key, path): _packed(item, f"{path}[{key!r}]", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_packed(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
    if type(value) not in _PLAIN:
        raise UnsavableError(f"{path} is of type {_type(value)}")
    return value


def _as_tensor(value: NDArray[Any], path: str) -> torch.Tensor:
    if isinstance(value, np.ma.MaskedArray):
        raise UnsavableError(f"{path} is of type {_type(value)}, whose mask would be lost")
    whole = np.asarray(value, order="C")
    try:
        return torch.from_numpy(whole if whole.flags.writeable else whole.copy())
    except (TypeError, ValueError):
        raise UnsavableError(f"{path} is an array of dtype {value.dtype}") from None


def _key(key: Any, path: str) -> Any:
    plain = key.item() if isinstance(key, np.generic) else key
    if type(plain) not in (str, int, float, bool, type(None)) or plain == _ARRAY:
        raise UnsavableError(f"{path} has the key {key!r} of type {_type(key)}")
    return plain


def _type(value: Any) -> str:
    parts = [part for part in type(value).__module__.split(".") if not part.startswith("_")]  # pathlib._local of 3.13
    return ".".join([*parts, type(value).__qualname__]).removeprefix("builtins.")


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_ARRAY}:
            return value[_ARRAY].numpy()
        return {key: _unpacked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpacked(item) for item in value]
    return value
