"""The distribution ``dataflex`` (OpenDCAI/DataFlex), which has the import name and the command of this one.

Installed beside each other, the one that came last has overwritten files of the other, and uninstalling either takes
files of both. Which is there is read from metadata; nothing is imported.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

OTHER = "dataflex"
OURS = "dataflex-core"


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
