"""Two ranks choose what one process chooses, with every selector that compares rows or losses."""

from __future__ import annotations

import socket

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from dataflex.core.context import UpdateContext
from dataflex.testing import TokenRows, pad_collate, tiny_model
from dataflex_selectors.cluster_less import ClusterLessSelector
from dataflex_selectors.delta_loss import DeltaLossSelector
from dataflex_selectors.near import NearSelector
from dataflex_selectors.rho_loss import RhoLossSelector
from dataflex_selectors.tsds import TsdsSelector

UPDATES = 3


def choices(accelerator, folder):
    """Returns selector -> the rows of all updates."""
    rows, target = TokenRows(60, lengths=range(6, 40)), TokenRows(3, lengths=range(6, 40), seed=1)
    options = {"token_budget": 90}
    to_target = options | {"embedding": "model"}
    common = (accelerator, pad_collate, str(folder))
    selectors = {
        "near": NearSelector(rows, target, *common, **to_target),
        "near ngrams": NearSelector(rows, target, *common),
        "tsds": TsdsSelector(rows, target, *common, **to_target),
        "tsds ngrams": TsdsSelector(rows, target, *common),
        "cluster_less": ClusterLessSelector(rows, target, *common, clusters=6, budget="ucb", **to_target),
        "cluster_less ngrams": ClusterLessSelector(rows, target, *common, clusters=6, **options),
        "delta_loss": DeltaLossSelector(rows, *common, **options),
        "rho_loss": RhoLossSelector(rows, *common, reference_model=str(folder / "model"), pool_factor=2, **options),
    }
    found = {}
    for name, selector in selectors.items():
        selector.bind(name, 7)
        picks = []
        for update in range(UPDATES):
            context = UpdateContext(update, UPDATES, 10 * update, 30, 1e-3, None)
            picks.append(selector.select(tiny_model(seed=update), 10 * update, 12, context=context).indices)
        found[name] = np.stack(picks)
    return found


def _rank(rank, world_size, port, folder):
    torch.set_num_threads(1)
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, str(value))
        accelerator = Accelerator(cpu=True)
        np.savez(folder / f"rank{rank}.npz", **choices(accelerator, folder))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(True)


def test_two_ranks_choose_what_one_process_chooses(tmp_path):
    tiny_model(seed=9).save_pretrained(tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (2, port, tmp_path), nprocs=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = choices(None, tmp_path)
    torch.set_num_threads(threads)
    assert len(alone) == 8
    for rank in range(2):
        answer = np.load(tmp_path / f"rank{rank}.npz")
        for name, expected in alone.items():
            np.testing.assert_array_equal(answer[name], expected, err_msg=f"{name} on rank {rank}")
