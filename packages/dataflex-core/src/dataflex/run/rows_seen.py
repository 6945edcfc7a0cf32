"""How many different rows a run has trained on, from the rows of its segments."""

from __future__ import annotations

import re
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

MOST_BYTES = 2**27
"""Of all the segments of a run that are read for one number: above it nobody is kept waiting."""
_SEGMENT = re.compile(r"step_([0-9]{8,})\.npz")


def rows_seen(selections: Path, step: int, batch: int) -> int | None:
    """Returns how many different rows there were in the first ``step`` steps; None where that cannot be told quickly.

    Args:
        selections: The folder of the segments.
        step: Optimizer steps done. What is planned beyond them was not trained on.
        batch: Rows of a step over all ranks.
    """
    named = [(_SEGMENT.fullmatch(path.name), path) for path in selections.glob("step_*.npz")]
    starts = {int(found[1]): path for found, path in named if found is not None}
    parts = []
    try:
        if sum(path.stat().st_size for path in starts.values()) > MOST_BYTES:
            return None
        for start, path in starts.items():
            with np.load(path) as arrays:
                rows = np.asarray(arrays["indices"])
            parts.append(np.unique(rows[: max(0, step - start) * batch]))
    except (OSError, ValueError, KeyError, BadZipFile):  # damaged: that is for those who read it
        return None
    return len(np.unique(np.concatenate(parts))) if parts else None
