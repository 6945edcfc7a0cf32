"""Ranks on the CPU, each a process of its own, for tests of what is collective.

    def total(number):                       # a function of a module, as the processes import it
        found = torch.tensor([number + torch.distributed.get_rank()])
        torch.distributed.all_reduce(found)
        return found.item()

    def test_total():
        assert two_ranks(total, 3) == [7, 7]

The processes are started once (some five seconds, for they import torch) and take call after call. Where a rank raises,
or does not come back in time, all are ended, and the error says what each was doing.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from dataflex.testing.rank_worker import STACK_SIGNAL, serve

TIMEOUT = 180.0
"""Seconds that a call may take: far more than any tiny run needs. It guards against collectives that do not match."""
_START = 600.0  # seconds that the processes have to import torch and to meet, on a machine that is busy
_OTHERS = 5.0  # seconds that the other ranks have to come back once one has raised
_END = 5.0  # seconds that a process has to end by itself
_CLEAN = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "DATAFLEX_TEST_GPU": "0", "OMP_NUM_THREADS": "1"}


class RankError(AssertionError):
    """A rank raised, died or hung; the message holds what each of them said."""


class RankProcesses:
    """Processes that are the ranks of one gloo process group; started at the first call.

    Args:
        count: How many.
    """

    def __init__(self, count: int = 2) -> None:
        self.count = count
        self._processes: list[SpawnProcess] = []
        self._pipes: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __call__(self, function: Callable[..., Any], *args: Any, timeout: float = TIMEOUT) -> list[Any]:
        """Returns what ``function(*args)`` returns on each rank, by rank.

        Args:
            function: A function of a module; it and its arguments are pickled, and so is what it returns.
            *args: The same for every rank.
            timeout: Seconds after which a rank that is not back is taken to hang.

        Raises:
            RankError: With the traceback of each rank that raised, or where those that hang are.
            TypeError: The function or an argument cannot be sent to another process.
        """
        try:
            call = pickle.dumps((function, args))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                f"this cannot be sent to the processes of the ranks: {error} -> give a function of a module, and "
                "arguments that can be pickled"
            ) from error
        if not self._processes:
            self._start()
        path, end = list(sys.path), time.monotonic() + timeout  # the processes are there: starting is not counted
        for pipe in self._pipes:
            pipe.send((path, os.getcwd(), call))
        said = self._answers(end)
        if all(kind == "returned" for kind, _ in said.values()) and len(said) == self.count:
            return [pickle.loads(said[rank][1]) for rank in range(self.count)]
        raise RankError(self._ended(said, timeout))

    def close(self) -> None:
        """Ends the processes; the next call starts others."""
        for pipe in self._pipes:
            pipe.close()  # a process whose pipe is closed ends by itself
        for process in self._processes:
            process.join(_END)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes, self._pipes = [], []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        context = multiprocessing.get_context("spawn")
        for rank in range(self.count):
            ours, theirs = context.Pipe()
            group: dict[str, object] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.count}
            group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environ = _CLEAN | {key: str(value) for key, value in group.items()}
            process = context.Process(target=serve, args=(theirs, environ, str(self._stack(rank))), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
        said = self._answers(time.monotonic() + _START)
        if any(kind != "returned" for kind, _ in said.values()) or len(said) < self.count:
            raise RankError(f"the processes of the ranks did not start\n{self._ended(said, _START)}")

    def _stack(self, rank: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name, f"rank{rank}.txt")

    def _answers(self, end: float) -> dict[int, tuple[str, Any]]:
        """Returns what the ranks answered until the end, or until one has raised and the others had their time."""
        said: dict[int, tuple[str, Any]] = {}
        while len(said) < self.count:
            left = [self._pipes[rank] for rank in range(self.count) if rank not in said]
            ready = wait(left, max(0.0, end - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                rank = self._pipes.index(pipe)  # type: ignore[arg-type]  # it is one of ours
                try:
                    said[rank] = self._pipes[rank].recv()
                except (EOFError, OSError):
                    self._processes[rank].join(_END)
                    said[rank] = ("died", f"the process ended with exit code {self._processes[rank].exitcode}")
                if said[rank][0] != "returned":
                    end = min(end, time.monotonic() + _OTHERS)
        return said

    def _ended(self, said: dict[int, tuple[str, Any]], timeout: float) -> str:
        """Ends the processes, and returns what each of them said or where it was."""
        lines = []
        for rank in range(self.count):
            kind, what = said.get(rank, ("hung", ""))
            if kind == "returned":
                lines.append(f"rank {rank} came back")
            elif kind == "hung":
                why = "waited for the others" if said else f"was not back after {timeout:g} s"
                lines.append(f"rank {rank} {why}:\n{self._where(rank)}")
            else:
                lines.append(f"rank {rank} {kind}:\n{what}")
        self.close()
        return "\n".join(lines)

    def _where(self, rank: int) -> str:
        """Returns the stack of a rank that hangs, which it writes when it is asked by a signal."""
        process = self._processes[rank]
        if process.pid is None or not process.is_alive():
            return "(it is gone)"
        os.kill(process.pid, STACK_SIGNAL)
        end = time.monotonic() + _END
        file = self._stack(rank)
        while time.monotonic() < end and not (file.exists() and file.stat().st_size):
            time.sleep(0.05)
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else "(it does not answer)"


def two_ranks(function: Callable[..., Any], *args: Any, timeout: float = TIMEOUT) -> list[Any]:
    """Returns what ``function(*args)`` returns on rank 0 and on rank 1 of a gloo process group of two processes.

    The two are shared by all calls of this process and ended with it.

    Args:
        function: A function of a module.
        *args: The same for both ranks.
        timeout: Seconds after which a rank that is not back is taken to hang.

    Raises:
        RankError: A rank raised, died or hung.
        TypeError: The function or an argument cannot be sent to another process.
    """
    return _pair(function, *args, timeout=timeout)


_pair = RankProcesses(2)
atexit.register(_pair.close)
