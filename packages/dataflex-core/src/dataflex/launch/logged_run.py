"""A run that another command starts: in a process of its own, what it says in a file, signals passed on to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from dataflex.core.errors import ConfigError
from dataflex.launch.supervised import Programs, stop_seconds, supervised
from dataflex.launch.torchrun import followed
from dataflex.utils.logging import logger


def run_logged(
    argv: Sequence[str],
    file: Path,
    log: Path,
    heading: str,
    environ: Mapping[str, str],
    programs: Programs | None = None,
) -> int:
    """Runs ``dataflex-cli train FILE ...`` and returns its exit code; 128 + N after a signal N to this process.

    Where the process that started it before was killed, that run may still be saving its checkpoint: it is waited for.

    Args:
        argv: What stands behind the file.
        file: The file of the run, absolute.
        log: Where what it says is added.
        heading: A line that begins what is added.
        environ: More environment.
        programs: Where several run at a time, what they are run by.

    Raises:
        ConfigError: An earlier start of the run does not end.
    """
    _wait_for_earlier(file)
    with open(log, "ab") as output:
        output.write(f"{heading}\n".encode())
        output.flush()
        command = [sys.executable, "-m", "dataflex", "train", str(file), *argv]
        if programs is not None:
            return programs.run(command, followed() | dict(environ), output)
        return supervised(command, followed() | dict(environ), output=output, more_follows=True)


def _wait_for_earlier(file: Path) -> None:
    earlier = [process for process in psutil.process_iter() if _trains(process, str(file))]
    if not earlier:
        return
    seconds = stop_seconds(os.environ)
    numbers = ", ".join(str(process.pid) for process in earlier)
    logger.info("an earlier start of this run (process %s) is still stopping: waiting up to %g s", numbers, seconds)
    _, alive = psutil.wait_procs(earlier, timeout=seconds)
    if alive:
        raise ConfigError(f"{file} is being trained by process {alive[0].pid} -> wait for it to end, or end it")


def _trains(process: psutil.Process, file: str) -> bool:
    try:
        line = process.cmdline()
    except psutil.Error:  # it has ended, or is another user's
        return False
    return process.pid != os.getpid() and file in line and "train" in line
