"""Checkpoints of a reward model: LLaMA-Factory writes its value head and the model under it into files of their own.

``transformers`` looks for one file with both when a run is resumed, or ends with its best model: it finds none, or, of
a model that is trained as a whole, takes names that do not fit and goes on with the weights that are there. Here both
files are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers.trainer_utils import load_sharded_checkpoint

from dataflex.core.errors import CheckpointError

HEAD = ("value_head.safetensors", "value_head.bin")
_WHOLE = ("model.safetensors", "pytorch_model.bin")


def resuming(original: type[Any]) -> type[Any]:
    """Returns LLaMA-Factory's trainer of reward models, which reads the checkpoints that it has written."""

    class ResumingTrainer(original):
        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            whole = self.model if model is None else model
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # their engines keep whole states of their own
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                load_reward_model(whole, Path(resume_from_checkpoint))

        def _load_best_model(self) -> None:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                super()._load_best_model()
            else:
                load_reward_model(self.model, Path(self.state.best_model_checkpoint))

    ResumingTrainer.__name__ = original.__name__
    return ResumingTrainer


def load_reward_model(model: Any, checkpoint: Path) -> None:
    """Loads the value head, and the model or its adapter, from a checkpoint.

    Args:
        model: A model with ``pretrained_model`` and ``v_head``.
        checkpoint: Its folder.

    Raises:
        CheckpointError: It has no file of the value head, or weights of another model.
    """
    _load(model.v_head, _state(checkpoint, HEAD, "v_head."), checkpoint)
    inner = model.pretrained_model
    if isinstance(inner, PeftModel):
        inner.load_adapter(str(checkpoint), inner.active_adapter, is_trainable=True)
    elif any((checkpoint / name).is_file() for name in _WHOLE):
        _load(inner, _state(checkpoint, _WHOLE, ""), checkpoint)
        inner.tie_weights()
    else:
        _require_fitting(inner, load_sharded_checkpoint(inner, str(checkpoint), strict=False), checkpoint)  # type: ignore[no-untyped-call]
        inner.tie_weights()


def _state(checkpoint: Path, names: tuple[str, ...], prefix: str) -> dict[str, torch.Tensor]:
    file = next((checkpoint / name for name in names if (checkpoint / name).is_file()), None)
    if file is None:
        raise CheckpointError(
            f"{checkpoint} has none of the files {', '.join(names)} -> resume from another checkpoint"
        )
    if file.suffix == ".safetensors":
        found = load_file(file, device="cpu")
    else:
        found = torch.load(file, map_location="cpu", weights_only=True)
    return {name.removeprefix(prefix): value for name, value in found.items()}


def _load(module: torch.nn.Module, state: dict[str, torch.Tensor], checkpoint: Path) -> None:
    _require_fitting(module, module.load_state_dict(state, strict=False), checkpoint)


def _require_fitting(module: torch.nn.Module, result: Any, checkpoint: Path) -> None:
    """Refuses weights of another model.

    Args:
        module: What they were loaded into.
        result: What did not fit, as torch says it.
        checkpoint: Where they are from.
    """
    tied = {name for name, _ in module.named_parameters(remove_duplicate=False)} - set(dict(module.named_parameters()))
    wrong = [*(set(result.missing_keys) - tied), *result.unexpected_keys]
    if wrong:
        raise CheckpointError(
            f"{checkpoint} holds weights of another model: {wrong[0]} does not fit -> resume with the model and the "
            "finetuning_type that the run began with"
        )
