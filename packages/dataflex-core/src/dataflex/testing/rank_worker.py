"""The process of one rank: it joins the group, and answers calls until its pipe is closed."""

from __future__ import annotations

import faulthandler
import gc
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

STACK_SIGNAL = signal.SIGUSR1
"""Asks a process for its stack."""
_GROUP = timedelta(minutes=30)  # longer than any call may take: who hangs is found by the process that called


def serve(pipe: Connection, environ: Mapping[str, str], stack: str) -> None:
    """Answers calls; ends when the pipe is closed.

    Args:
        pipe: Gives (``sys.path``, the working directory, the pickled call), takes ``("returned" | "raised", what)``.
        environ: What makes the process this rank.
        stack: The file that the stack is written to when it is asked for.
    """
    os.environ.update(environ)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's, who closes the pipe
    import torch
    import tqdm

    torch.set_num_threads(1)
    tqdm.tqdm.set_lock(threading.RLock())  # its own is a semaphore too, which would be left behind with a warning
    imported = 0
    with open(stack, "w", encoding="utf-8") as file:
        faulthandler.register(STACK_SIGNAL, file=file, all_threads=False)
        torch.distributed.init_process_group("gloo", timeout=_GROUP)
        pipe.send(("returned", b""))  # it is there
        while True:
            try:
                path, folder, call = pipe.recv()
            except (EOFError, OSError):
                break
            pipe.send(_answer(path, folder, call))
            if len(sys.modules) > imported:
                # Each training collects garbage, which would look at all of torch and transformers again and again.
                gc.collect()
                gc.freeze()
                imported = len(sys.modules)
    os._exit(0)  # a group whose other rank is gone already cannot be left in order


def _answer(path: Sequence[str], folder: str, call: bytes) -> tuple[str, Any]:
    sys.path[:] = path
    try:
        os.chdir(folder)
        function, args = pickle.loads(call)
        return "returned", pickle.dumps(function(*args))
    except BaseException:  # noqa: BLE001  # whatever it is, the caller must hear of it: who is silent is waited for
        return "raised", traceback.format_exc()
