"""What the prompts of a dataset say, as one text each: for a person who looks at them, and for likeness of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.rows.views import fetch

PROMPT = "prompt"
"""The column of a prompt in TRL's datasets: a text, or messages with ``role`` and ``content``."""


def prompt_texts(dataset: Any, rows: NDArray[np.int64]) -> list[str]:
    """Returns the text of some rows' prompts: of messages, what each says, one after the other.

    A row without a prompt gives a blank text. Pictures and other parts of a message that are no text are left out.

    Args:
        dataset: A dataset with rows by number.
        rows: (n,) row numbers.
    """
    return [_text(row.get(PROMPT)) for row in fetch(dataset, rows)]


def _text(found: Any) -> str:
    if isinstance(found, str):
        return found
    if isinstance(found, Mapping):
        said = found.get("content", found.get("text"))
        return "" if said is None else _text(said)
    if isinstance(found, Sequence):
        return "\n".join(filter(None, map(_text, found)))
    return ""
