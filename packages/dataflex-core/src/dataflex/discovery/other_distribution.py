"""The distribution ``dataflex`` (OpenDCAI/DataFlex), which has the import name and the command of this one.

Installed beside each other, the one that came last has overwritten files of the other, and uninstalling either takes
files of both. Which is there is read from metadata; nothing is imported.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

OTHER = "dataflex"
OURS = "dataflex-core"
COMMAND = "dataflex-cli"


def other_distribution() -> str | None:
    """Returns what is wrong where both distributions are installed, and the way out; None where ours is alone."""
    try:
        found = version(OTHER)
    except PackageNotFoundError:
        return None
    return (
        f"the distribution {OTHER} {found} (OpenDCAI/DataFlex) is installed beside {OURS}, and both are imported as "
        f"{OTHER}, so that files of one have been overwritten -> pip uninstall {OTHER}, and then pip install "
        f"--force-reinstall --no-deps {OURS}"
    )


def is_command_line() -> bool:
    """Returns whether this process is ``dataflex-cli`` or ``python -m dataflex``, which end in that sentence."""
    if sys.argv[0] == "-m":  # so it is while the package that `python -m` names is imported
        return sys.orig_argv[-len(sys.argv)] in (OTHER, f"-m{OTHER}")
    return Path(sys.argv[0]).stem == COMMAND
