"""The one logger of dataflex. A library configures no handlers; the command line does, in :func:`log_to_stderr`."""

from __future__ import annotations

import logging
import os
import sys

from dataflex.utils.secret_values import scrubbed

logger = logging.getLogger("dataflex")
logger.addHandler(logging.NullHandler())


def is_rank_0() -> bool:
    """Returns whether this process is the one that speaks for all of a run, by what its launcher says."""
    return os.environ.get("RANK", "0") == "0"


class _RankZero(logging.Filter):
    """Passes everything on rank 0 and only errors elsewhere."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or is_rank_0()


class _WithoutSecrets(logging.Formatter):
    """Leaves out the secrets that this process has read, whoever put them into a message."""

    def format(self, record: logging.LogRecord) -> str:
        return scrubbed(super().format(record))


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
        text = "[%(levelname)s|dataflex] %(asctime)s >> %(message)s"
        self.setFormatter(_WithoutSecrets(text, "%Y-%m-%d %H:%M:%S"))
        self.addFilter(_RankZero())


_stderr = _Stderr()


def log_to_stderr() -> None:
    """Sends dataflex's records of level INFO and above to stderr, on rank 0. For command lines; harmless to repeat."""
    logger.addHandler(_stderr)
    logger.setLevel(logging.INFO)
    logger.propagate = False
