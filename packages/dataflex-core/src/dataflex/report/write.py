"""Writing the page into the folder of a run, over an older page of ours and over nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflex.core.errors import ConfigError
from dataflex.core.files import REPORT, move_aside, replacing
from dataflex.report.report_page import MARK, report_html
from dataflex.utils.logging import logger

_HEAD = 2000


def write_report(
    folders: Sequence[Path],
    *,
    into: Path | None = None,
    names: Sequence[str] | None = None,
    comparison: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the page about one run or several, and returns its path. Nothing of the runs is changed.

    Args:
        folders: The folders of the runs, one at least.
        into: The file to write; ``dataflex_report.html`` in the first folder where nothing is given. A folder gets a
            file of that name.
        names: What the page calls the runs; the names of their folders where none are given.
        comparison: What ``dataflex-cli compare FILE`` has found.

    Raises:
        ConfigError: A folder is none, or holds no run; or the file cannot be written.
    """
    return write_page(report_html(folders, names, comparison), folders[0] / REPORT if into is None else into)


def write_page(text: str, into: Path) -> Path:
    """Writes a page that is made already, and returns its path. A file there that is not ours is moved aside.

    Args:
        text: The page.
        into: The file to write; a folder gets a file ``dataflex_report.html``.

    Raises:
        ConfigError: The file cannot be written.
    """
    path = into / REPORT if into.is_dir() else into
    try:
        if path.exists() and not is_ours(path):
            logger.warning("%s is not a report of ours: moved to %s", path, move_aside(path))
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written: {error.strerror or error} -> name another place with --out FILE"
        ) from error
    return path


def is_ours(path: Path) -> bool:
    """Returns whether a file is a page that this module wrote, by the mark in its head."""
    if not path.is_file() or not os.access(path, os.R_OK):
        return False
    with open(path, "rb") as file:
        return f'<meta name="generator" content="{MARK}'.encode() in file.read(_HEAD)
