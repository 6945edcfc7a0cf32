"""Ranks on the CPU, each a process of its own, for tests of what is collective."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

Work = Callable[[Accelerator, Path], dict[str, np.ndarray]]

HUNG = 400  # seconds; a guard against collectives that do not match, far above what any rank here takes
# Ranks are forked from one process that has imported all this and computed nothing: each would need five seconds and
# more to import it.
IMPORTED = ["pytest", "transformers.trainer", "peft", "dataflex.testing", "dataflex.train.trainer"]


def start(function: Callable[..., None], ranks: int, *given: Any) -> None:
    """Runs `function(rank, port, *given)`, a function of a module, on each rank, and waits for all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    started: list[BaseProcess] = [context.Process(target=function, args=(rank, port, *given)) for rank in range(ranks)]
    # On the CPU whatever the other tests run on: one accelerator has no room for two ranks, and gloo is what is tested.
    with patch.dict(os.environ, {"DATAFLEX_TEST_GPU": "0", "CUDA_VISIBLE_DEVICES": ""}):
        for process in started:
            process.start()
    for process in started:
        process.join(HUNG)
    hanging = [process for process in started if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, "a rank hangs: the collectives do not match"
    assert [process.exitcode for process in started] == [0] * ranks, "what a rank raised is on stderr"


def on_ranks(work: Work, ranks: int, folder: Path) -> list[dict[str, np.ndarray]]:
    """Returns what `work(accelerator, folder)`, a function of a module, gives on each rank."""
    start(_rank, ranks, work, ranks, folder)
    return [dict(np.load(folder / f"rank{rank}.npz")) for rank in range(ranks)]


def _rank(rank: int, port: int, work: Work, ranks: int, folder: Path) -> None:
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
