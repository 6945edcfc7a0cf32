"""``tokenized_path``: a folder of one tokenised dataset, or of one for each source.

LLaMA-Factory keeps the rows of a run in the folder itself. A run that must know the source of each row keeps one folder
for each source in it. Neither can be read as the other.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dataflex.core.errors import Problem

KEY = "tokenized_path"
EVALUATION = "%evaluation"
"""The folder of ``eval_dataset`` beside those of the sources; no source has this one, see :func:`source_folder`."""
_WHOLE = ("dataset_dict.json", "state.json")  # what datasets writes for several splits, and for one
_PLAIN = re.compile(r"[\w][\w .+-]*")


def source_folder(path: str, name: str) -> str:
    """Returns the folder in ``tokenized_path`` that holds a source; names that are no plain folder name are encoded."""
    return str(Path(path, name if _PLAIN.fullmatch(name) else quote(name, safe="").replace(".", "%2E")))


def is_kept(path: Any) -> bool:
    """Returns whether LLaMA-Factory would load tokenised data from there: a folder that holds anything."""
    return isinstance(path, str) and Path(path).is_dir() and any(Path(path).iterdir())


def tokenized_problems(path: Any, by_source: bool | None) -> list[Problem]:
    """Returns a problem where a folder holds tokenised data of the other kind.

    Args:
        path: ``tokenized_path``.
        by_source: Whether the run tokenises each source by itself; None where that is not known yet.
    """
    if not is_kept(path):
        return []
    whole = any(Path(path, name).is_file() for name in _WHOLE)
    if whole and by_source:
        what = f"{path} holds tokenised rows of a run that forgets which source a row is of, and this run must know it"
        return [Problem(KEY, what, "name another folder, or leave it out")]
    if whole or by_source:
        return []
    parts = sorted(part.name for part in Path(path).iterdir() if any((part / name).is_file() for name in _WHOLE))
    if parts and by_source is None:
        return []
    if parts:
        what = f"{path} holds the sources of a mixture, tokenised one by one ({', '.join(parts)}), not one dataset"
    else:
        what = f"{path} holds files, but no tokenised dataset (there is no {' or '.join(_WHOLE)})"
    return [Problem(KEY, what, "name another folder, or leave it out")]
