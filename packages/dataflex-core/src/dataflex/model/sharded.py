"""A model's parameters as its optimizer knows them, where FSDP 2 has left some of them gathered."""

from __future__ import annotations

from torch import nn
from torch.distributed.fsdp import FSDPModule


def reshard(model: nn.Module) -> None:
    """Gives back what a forward pass without a backward pass has left gathered; call it between passes, on any rank.

    accelerate 1.15 shards a model's last norm and output layer so that they stay gathered from the forward pass to the
    backward pass. Where none comes, the model shows whole parameters that are none of the optimizer's.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
