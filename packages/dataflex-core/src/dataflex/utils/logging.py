"""The one logger of dataflex. A library configures no handlers; the command line does, in :func:`log_to_stderr`."""

from __future__ import annotations

import logging
import os
import sys

from dataflex.utils.secret_values import scrubbed

_COLOURS = {logging.DEBUG: 34, logging.INFO: 36, logging.WARNING: 33, logging.ERROR: 31}  # blue, cyan, yellow, red

logger = logging.getLogger("dataflex")
logger.addHandler(logging.NullHandler())


def is_rank_0() -> bool:
    """Returns whether this process is the one that speaks for all of a run, by what its launcher says."""
    return os.environ.get("RANK", "0") == "0"


class _RankZero(logging.Filter):
    """Passes everything on rank 0 and only errors elsewhere."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or is_rank_0()


class _Line(logging.Formatter):
    """Writes ``[INFO|dataflex] TIME >> MESSAGE``, its head in colour on a terminal: libraries write hundreds of lines.

    Leaves out the secrets that this process has read, whoever put them into a message.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s >> %(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        head = f"[{record.levelname}|dataflex]"
        if in_colour():
            head = f"\033[1;{_COLOURS.get(record.levelno, _COLOURS[logging.ERROR])}m{head}\033[0m"
        return scrubbed(f"{head} {super().format(record)}")


def in_colour() -> bool:
    """Returns whether stderr is a terminal that shows colours, and ``NO_COLOR`` is not set."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return sys.stderr is not None and sys.stderr.isatty()


class _WithBars:
    """Writes to what ``sys.stderr`` is at the moment, which a test or a notebook may have replaced.

    Where this process has imported tqdm, lines go through it: it takes its bars off the screen, writes the line, and
    draws them again below. Written past it, a line would begin in the middle of a bar.
    """

    def write(self, text: str) -> None:
        tqdm = sys.modules.get("tqdm.std")  # never imported here: validate and list have no use for it
        if tqdm is None:
            sys.stderr.write(text)
        else:
            tqdm.tqdm.write(text, file=sys.stderr, end="")

    def flush(self) -> None:
        sys.stderr.flush()


class _Stderr(logging.StreamHandler[_WithBars]):
    def __init__(self) -> None:
        super().__init__(_WithBars())
        self.setFormatter(_Line())
        self.addFilter(_RankZero())


_stderr = _Stderr()


def log_to_stderr(level: int = logging.INFO) -> None:
    """Sends dataflex's records to stderr, on rank 0. For command lines; harmless to repeat.

    Args:
        level: The least level of a record that is sent.
    """
    logger.addHandler(_stderr)
    logger.setLevel(level)
    logger.propagate = False
