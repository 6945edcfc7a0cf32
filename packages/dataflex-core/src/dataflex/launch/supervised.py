"""A program that this one starts and waits for: signals go on to it, and nothing of it outlives this one."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import IO, Any

import psutil

from dataflex.core.errors import ConfigError

STOP_SECONDS = "DATAFLEX_STOP_SECONDS"
_GRACE, _GRACE_OF_OTHERS = 600.0, 60.0  # seconds: after SIGTERM, which may save a checkpoint, and after the others
_AGAIN = 1.0  # seconds from which a second signal is one of its own
_PASSED_ON = [s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")]

PassOn = Callable[[psutil.Process, int], None]


def pass_on(process: psutil.Process, number: int) -> None:
    """Sends the signal to the process itself."""
    process.send_signal(number)


def supervised(
    command: Sequence[str],
    environ: Mapping[str, str] | None = None,
    to: PassOn = pass_on,
    output: IO[bytes] | None = None,
    more_follows: bool = False,
) -> int:
    """Runs a program and returns its exit code; 128 + N where it failed after this process got signal N.

    SIGINT, SIGTERM, SIGHUP and SIGQUIT to this process go on to the program, which is then waited for: as many seconds
    as ``DATAFLEX_STOP_SECONDS`` says after SIGTERM (600), 60 after the others. What is left of it and its descendants
    by then, or at a second signal, is killed. A signal that this process ignores (``nohup``) stays ignored.

    Args:
        command: The program and its arguments.
        environ: Its environment; this process's own unless given.
        to: Sends a signal on.
        output: Where what it writes to stdout and stderr goes; those of this process unless given.
        more_follows: Whether this process has more to start: then a signal is told by the exit code though the program
            was at its end and ended well, or the next one would be started after a Ctrl-C.

    Raises:
        ConfigError: ``DATAFLEX_STOP_SECONDS`` is no number of 0 or more.
    """
    group = _Group(to, stop_seconds(os.environ))
    with _listening(group.received):
        group.start(_started(command, environ, output))
        code = group.wait()
    if group.number is not None and (code != 0 or more_follows):
        return 128 + group.number
    return code if code >= 0 else 128 - code


class Programs:
    """Several programs at a time, each waited for by a thread of its own; a signal to this process goes on to all.

    Attributes:
        number: The first signal that came; None before. After it, none is started any more.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._groups: list[_Group] = []
        self._lock = threading.RLock()  # the handler of a signal may interrupt the thread that holds it

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Passes signals on meanwhile. For the main thread, which gets them."""
        with _listening(self._received):
            yield

    def run(
        self, command: Sequence[str], environ: Mapping[str, str] | None = None, output: IO[bytes] | None = None
    ) -> int:
        """Runs a program and returns its exit code; 128 + N after signal N to this process, as :func:`supervised`."""
        group = _Group(pass_on, stop_seconds(os.environ))
        with self._lock:
            if self.number is not None:
                return 128 + self.number
            group.start(_started(command, environ, output))
            self._groups.append(group)
        code = group.wait()
        with self._lock:
            self._groups.remove(group)
        if self.number is not None:
            return 128 + self.number
        return code if code >= 0 else 128 - code

    def _received(self, number: int, frame: FrameType | None) -> None:
        with self._lock:
            self.number = self.number or number
            for group in self._groups:
                group.received(number, frame)


def _started(
    command: Sequence[str], environ: Mapping[str, str] | None, output: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C in a terminal reaches this process alone, and once.
    said: dict[str, Any] = {} if output is None else {"stdout": output, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=environ, start_new_session=True, **said)


@contextmanager
def _listening(received: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Has signals to this process handled meanwhile, but for those that it ignores."""
    kept = {}
    if threading.current_thread() is threading.main_thread():
        kept = {number: signal.getsignal(number) for number in _PASSED_ON}
    kept = {number: handler for number, handler in kept.items() if handler not in (signal.SIG_IGN, None)}
    for number in kept:
        signal.signal(number, received)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def stop_seconds(environ: Mapping[str, str]) -> float:
    """Returns how long a run may take to stop after SIGTERM.

    Raises:
        ConfigError: The variable holds no number of 0 or more.
    """
    text = environ.get(STOP_SECONDS, str(_GRACE))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= threading.TIMEOUT_MAX:
        raise ConfigError(f"{STOP_SECONDS}: found {text!r}, allowed: a number of seconds, 0 or more -> correct it")
    return seconds


class _Group:
    """The program and its descendants."""

    def __init__(self, to: PassOn, grace: float) -> None:
        self._to, self._grace = to, grace
        self._popen: subprocess.Popen[bytes] | None = None
        self._known: list[psutil.Process] = []
        self._first = 0.0
        self.number: int | None = None  # the first signal that this process got

    def start(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        if self.number is not None:  # it came before there was anybody to send it to
            self._send(self.number)

    def wait(self) -> int:
        assert self._popen is not None
        code = self._popen.wait()
        _, left = psutil.wait_procs(self._known, timeout=5.0)
        for process in left:
            _kill(process)
        return code

    def received(self, number: int, frame: FrameType | None) -> None:
        """Sends a signal on; a second one kills."""
        now = time.monotonic()
        if self.number is None:
            self.number, self._first = number, now
            self._send(number)
        elif now - self._first >= _AGAIN:
            self.kill()

    def _send(self, number: int) -> None:
        if self._popen is None:
            return
        grace = self._grace if number == signal.SIGTERM else _GRACE_OF_OTHERS
        name = signal.Signals(number).name
        # Not through logging: the signal may have come in the middle of a line.
        os.write(2, f"{name}: passed on; waiting up to {grace:g} s, a second signal kills\n".encode())
        try:
            process = psutil.Process(self._popen.pid)
            self._known = process.children(recursive=True)
            self._to(process, number)
        except psutil.Error:  # it has just ended
            return
        timer = threading.Timer(grace, self.kill)
        timer.daemon = True
        timer.start()

    def kill(self) -> None:
        """Ends the program and its descendants, whatever they are doing."""
        assert self._popen is not None
        if self._popen.returncode is not None:
            return
        try:
            process = psutil.Process(self._popen.pid)
            everyone = [process, *process.children(recursive=True), *self._known]
        except psutil.Error:
            everyone = self._known
        for process in everyone:
            _kill(process)


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.Error:  # it has ended by itself, or its number is another's by now
        return


class Launcher:
    """The process that started this one's launcher, and that launcher: where either dies, this rank stops as well.

    Args:
        pid: The process whose end is to be noticed.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._parent = pid, os.getppid()

    def follow(self, seconds: float = 2.0) -> None:
        """Sends SIGTERM to this process when the launcher is gone, SIGKILL where that is of no use. Returns at once."""
        threading.Thread(target=self._watch, args=(seconds,), name="dataflex-launcher", daemon=True).start()

    def _watch(self, seconds: float) -> None:
        try:
            launcher = psutil.Process(self._pid)
            while os.getppid() == self._parent and launcher.is_running() and launcher.status() != psutil.STATUS_ZOMBIE:
                time.sleep(seconds)
        except psutil.Error:
            pass  # gone already
        os.write(2, b"the process that started this run is gone: stopping\n")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(stop_seconds(os.environ))
        os.kill(os.getpid(), signal.SIGKILL)
