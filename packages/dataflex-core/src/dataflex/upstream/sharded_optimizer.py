"""Resuming the optimizer from a sharded FSDP checkpoint.

With ``SHARDED_STATE_DICT``, accelerate 1.11 asks the checkpoint for what a new optimizer already holds, which is
nothing, and goes on without the moments that were saved (``accelerate.utils.fsdp_utils.load_fsdp_optimizer``; compare
huggingface/accelerate issue 3971). torch's own functions give a new optimizer its state first, so that it can be
filled.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed.checkpoint as distributed
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

FOLDER = "optimizer_0"  # accelerate's name for the first optimizer


def fill_sharded_optimizer(model: torch.nn.Module, optimizer: Any, checkpoint: str | os.PathLike[str]) -> None:
    """Loads the saved state of an optimizer that was left empty. Collective; does nothing where there is none to load.

    Args:
        model: The model, wrapped by FSDP 1 or 2.
        optimizer: Its optimizer.
        checkpoint: The folder that is resumed from.
    """
    folder = os.path.join(checkpoint, FOLDER)
    if optimizer.state_dict()["state"] or not os.path.isdir(folder):
        return
    state = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    distributed.load(  # type: ignore[attr-defined]  # documented, but missing from its __all__
        state, checkpoint_id=folder
    )
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
