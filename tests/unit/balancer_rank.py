"""What each rank of the balancer's test does."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import torch
from dataflex_weighters.parts.loss_balancer import Balancer

ITEMS = (3, 5)
"""Batch items of each rank."""
CALLS = 2


def tensors(rank: int, call: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the (B, 4) inputs and scales of a rank."""
    generator = torch.Generator().manual_seed(10 * rank + call)
    x, scale = torch.randn(2, ITEMS[rank], 4, generator=generator)
    return x, scale


def rank(number: int, port: int, ranks: int, folder: str) -> None:
    """Balances two losses and leaves ``NUMBER.json``: the gradient of each call, the metrics, the returned numbers."""
    torch.set_num_threads(1)
    where = {"init_method": f"tcp://127.0.0.1:{port}", "rank": number, "world_size": ranks}
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60), **where)  # no hang, but an error
    found = {}
    for per_batch_item in (True, False):
        balancer = Balancer({"a": 1, "b": 2}, ema_decay=0.5, per_batch_item=per_batch_item, monitor=True)
        grads, metrics = [], []
        for call in range(CALLS):
            x, scale = tensors(number, call)
            x.requires_grad_()
            balancer.backward({"a": (scale * x).sum(), "b": (x**2).sum()}, x)
            grads.append(x.grad.tolist())
            metrics.append(balancer.metrics)
        found[str(per_batch_item)] = {"grads": grads, "metrics": metrics}
    Path(folder, f"{number}.json").write_text(json.dumps(found))
    torch.distributed.barrier()  # a rank that leaves early can keep the other one from leaving
    torch.distributed.destroy_process_group()
