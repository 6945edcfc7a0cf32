"""The one logger of dataflex. A library configures no handlers; the command line does, in :func:`log_to_stderr`."""

from __future__ import annotations

import logging
import os
import sys

logger = logging.getLogger("dataflex")
logger.addHandler(logging.NullHandler())


class _RankZero(logging.Filter):
    """Passes everything on rank 0 and only errors elsewhere."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or os.environ.get("RANK", "0") == "0"


def log_to_stderr() -> None:
    """Sends dataflex's records of level INFO and above to stderr, rank 0 only. Called once, by the command line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("[%(levelname)s|dataflex] %(asctime)s >> %(message)s", "%Y-%m-%d %H:%M:%S"))
    handler.addFilter(_RankZero())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
