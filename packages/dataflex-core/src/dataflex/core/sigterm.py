"""SIGTERM, as schedulers send it: a run is asked to stop, and may save a checkpoint first.

Signals belong to the process, so this is switched on by the command line alone; in somebody else's program (training
from Python) SIGTERM stays what that program made of it. Where it is switched on, the signal is caught only while the
training loop runs. Before and after it, there is no step whose end could be waited for, and SIGTERM ends the process as
it ends any other.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AT_ONCE_AFTER = 5.0
"""Seconds after the first SIGTERM from which another one ends the process at once. Several within that time are one
request: a service manager signals every process of a job, and launchers pass on what they get."""


class _Request:
    """What this process knows of a wish to stop."""

    allowed = False
    caught = False
    first: float | None = None  # when it came


_request = _Request()


@contextmanager
def allowed() -> Iterator[None]:
    """Inside of it, training may catch SIGTERM: the process is dataflex's own."""
    before, _request.allowed = _request.allowed, True
    try:
        yield
    finally:
        _request.allowed = before


@contextmanager
def caught() -> Iterator[None]:
    """Inside of it, SIGTERM is noted and not obeyed at once, where that is :func:`allowed`.

    A wish that nothing has followed by the end, as no step came after it, is passed on then.
    """
    kept = signal.getsignal(signal.SIGTERM)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not _request.allowed or not in_main_thread or kept is signal.SIG_IGN or kept is None:
        yield
        return
    _request.first, _request.caught = None, True
    signal.signal(signal.SIGTERM, _note)
    try:
        yield
    finally:
        left = asked()
        signal.signal(signal.SIGTERM, kept)
        _request.first, _request.caught = None, False
    if left:
        os.kill(os.getpid(), signal.SIGTERM)


def may_be_asked() -> bool:
    """Returns whether SIGTERM is being caught."""
    return _request.caught


def asked() -> bool:
    """Returns whether this process was asked to stop. Other ranks may not have been, or not yet."""
    return _request.first is not None


def _note(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _request.first is None:
        _request.first = now
        # Not through logging: the signal may have come in the middle of a line.
        os.write(2, b"SIGTERM: stopping at the end of this step; another one ends the process at once\n")
    elif now - _request.first >= AT_ONCE_AFTER:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
