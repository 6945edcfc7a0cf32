"""The one logger of dataflex. A library configures no handlers; the command line does, in :func:`log_to_stderr`."""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

from dataflex.core.secret_values import scrubbed

logger = logging.getLogger("dataflex")
logger.addHandler(logging.NullHandler())


class _RankZero(logging.Filter):
    """Passes everything on rank 0 and only errors elsewhere."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or os.environ.get("RANK", "0") == "0"


class _WithoutSecrets(logging.Formatter):
    """Leaves out the secrets that this process has read, whoever put them into a message."""

    def format(self, record: logging.LogRecord) -> str:
        return scrubbed(super().format(record))


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what ``sys.stderr`` is at the moment, which a test or a notebook may have replaced.

    Where this process has imported tqdm, lines go through it: it takes its bars off the screen, writes the line, and
    draws them again below. Written past it, a line would begin in the middle of a bar.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        text = "[%(levelname)s|dataflex] %(asctime)s >> %(message)s"
        self.setFormatter(_WithoutSecrets(text, "%Y-%m-%d %H:%M:%S"))
        self.addFilter(_RankZero())

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # read only, as the stream is never ours
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the record; like every handler, it never raises into what is logged."""
        tqdm = sys.modules.get("tqdm.std")  # never imported here: validate and list have no use for it
        if tqdm is None:
            super().emit(record)
            return
        try:
            tqdm.tqdm.write(self.format(record), file=self.stream, end=self.terminator)
            self.flush()
        except Exception:  # a closed pipe, a message that cannot be formatted: as logging's own handlers do
            self.handleError(record)


_stderr = _Stderr()


def log_to_stderr() -> None:
    """Sends dataflex's records of level INFO and above to stderr, on rank 0. For command lines; harmless to repeat."""
    logger.addHandler(_stderr)
    logger.setLevel(logging.INFO)
    logger.propagate = False
