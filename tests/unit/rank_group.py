"""Ranks on the CPU, each a process of its own, for tests of what is collective."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

Work = Callable[[Accelerator, Path], dict[str, np.ndarray]]


def on_ranks(work: Work, ranks: int, folder: Path) -> list[dict[str, np.ndarray]]:
    """Returns what `work(accelerator, folder)`, a function of a module, gives on each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # On the CPU whatever the other tests run on: one accelerator has no room for two ranks, and gloo is what is tested.
    with patch.dict(os.environ, {"DATAFLEX_TEST_GPU": "0", "CUDA_VISIBLE_DEVICES": ""}):
        torch.multiprocessing.spawn(_rank, (work, ranks, port, folder), nprocs=ranks)
    return [dict(np.load(folder / f"rank{rank}.npz")) for rank in range(ranks)]


def _rank(rank: int, work: Work, ranks: int, port: int, folder: Path) -> None:
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    with pytest.MonkeyPatch.context() as monkeypatch, one_thread():
        for key, value in environment.items():
            monkeypatch.setenv(key, str(value))
        found = work(Accelerator(cpu=True), folder)
        np.savez(folder / f"rank{rank}.npz", **found)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes with the one thread that a rank has: more change the last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
