"""What ``train``, ``score`` and ``validate`` begin with: FILE and its key=value overrides, read and checked.

``--quiet`` may stand anywhere among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dataflex.config.check import check
from dataflex.config.load import read_config
from dataflex.config.null_values import without_unset
from dataflex.config.spec import RunSpec
from dataflex.core.errors import ConfigError
from dataflex.core.verbosity import QUIET, asked, without_flag
from dataflex.utils.logging import log_to_stderr


def checked_run(argv: Sequence[str], usage: str, *, trains: bool = True) -> RunSpec:
    """Returns the run that a command line names. From here on the log goes to stderr.

    Args:
        argv: What stands behind the command: FILE, then key=value overrides, and ``--quiet`` anywhere.
        usage: The command line, for the message where there is no file.
        trains: Whether the command trains, or looks only whether it could.

    Raises:
        ConfigError: There is no file, or the run cannot start; the message holds everything that is wrong.
    """
    verbosity = asked(argv)
    file, *overrides = without_flag(argv) or [""]
    if not file:
        raise ConfigError(f"no file given -> {usage}")
    if file.startswith("-"):
        raise ConfigError(f"'{file}': found in place of FILE, and the one option here is {QUIET} -> {usage}")
    log_to_stderr(verbosity.own)
    config = without_unset(read_config(file, overrides), overrides)
    return check(config, Path(file).absolute().parent, trains=trains)
