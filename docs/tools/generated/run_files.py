"""Every file that a run leaves, with what docs/outputs.md says of it."""

from __future__ import annotations

import re
from pathlib import Path

from dataflex.core import files

from generated.markdown import table

GUIDE = Path(__file__).parents[2] / "outputs.md"
_ROW = re.compile(r"^\| `(.+?)` \| (.+) \|$", flags=re.MULTILINE)
_LINK = re.compile(r"\]\((?!\w+:)([^)]*)\)")

TEXT = """# Files of a run

What a run leaves in its `output_dir`, beside the files of LLaMA-Factory or of the trainer. [Output
files](../outputs.md) has the format of each, key by key. The constants are those of `dataflex.core.files`, for programs
that read a run.

"""


def constants() -> dict[str, str]:
    """Returns file or folder -> the constant that names it."""
    return {value: name for name, value in vars(files).items() if name.isupper() and name[0] != "_"}


def page() -> str:
    """Returns the page.

    Raises:
        ValueError: docs/outputs.md has no row for a file of ``dataflex.core.files``.
    """
    guide = GUIDE.read_text(encoding="utf-8").partition("\n## ")[0]
    names, rows, found = constants(), [], set()
    for path, what in _ROW.findall(guide):
        parts = path.strip("/").split("/")
        name = next((part for part in reversed(parts) if part in names), None)
        found.add(name)
        rows.append((f"`{path}`", f"`{names[name]}`" if name else "", _LINK.sub(_from_reference, what)))
    missing = set(names) - found
    if missing:
        raise ValueError(f"docs/outputs.md has no row for {', '.join(sorted(missing))}")
    return TEXT + table(("file", "constant", "what"), rows)


def _from_reference(link: re.Match[str]) -> str:
    target = link[1]
    return f"](../outputs.md{target})" if target.startswith("#") else f"](../{target})"
