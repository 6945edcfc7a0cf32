"""``dataflex-cli report``: a page that shows what the data of a run did, or of several runs side by side.

DIR is the output_dir of a run: under way, done, failed or killed, dynamic or static. The page is one file that opens
from disk without a network; its path is printed. It is written to dataflex_report.html in the first DIR, or where --out
says.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dataflex.core.errors import ConfigError

SUMMARY = "write a page that shows what the data of a run did"
USAGE = "dataflex-cli report DIR [DIR ...] [--out FILE]"
OUT = "--out"


def run(argv: Sequence[str]) -> int:
    """Writes the page and prints its path. Returns the exit code."""
    from dataflex.report.write import write_report  # here: NumPy is not needed to say what the command does

    folders, into = _parsed(argv)
    sys.stdout.write(f"{write_report(folders, into=into)}\n")
    return 0


def _parsed(argv: Sequence[str]) -> tuple[list[Path], Path | None]:
    folders: list[Path] = []
    into: Path | None = None
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if name == OUT:
            if not equals and not rest:
                raise ConfigError(f"{OUT}: found nothing, expected a file -> {USAGE}")
            into = Path(value if equals else rest.pop(0))
        elif argument.startswith("-"):
            raise ConfigError(f"found {argument}; expected the folders of runs, and {OUT} FILE -> {USAGE}")
        else:
            folders.append(Path(argument))
    if not folders:
        raise ConfigError(f"found no folder; expected the output_dir of a run or more -> {USAGE}")
    return folders, into
