"""The rows of a folder that LLaMA-Factory, or a run by sources, has tokenised: counted, and some of them measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np

from dataflex.core.errors import ConfigError
from dataflex.forecast.text_tokens import Counted

MOST = 2000
"""Rows of a split that are looked at."""
_IGNORED = -100
_TEXTS = (("input_ids",), ("chosen_input_ids", "rejected_input_ids"))
"""The columns of a row's tokens: one, or those of the two answers of a pair."""


def kept_rows(folder: Path) -> dict[str, tuple[float, Counted]]:
    """Returns split -> its number of rows, and tokens and labels of some of them. A folder of one split has ``train``.

    Raises:
        ConfigError: It cannot be read, or holds no tokenised rows.
    """
    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise ConfigError(f"tokenized_path: {folder} cannot be read: {error} -> tokenise again") from error
    parts = dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}
    if not parts.get("train"):
        raise ConfigError(f"tokenized_path: {folder} holds no rows to train on -> tokenise again")
    return {str(name): (float(len(part)), _counted(part)) for name, part in parts.items() if len(part)}


def _counted(part: Any) -> Counted:
    places = np.unique(np.linspace(0, len(part) - 1, min(MOST, len(part))).astype(int))
    columns = next((names for names in _TEXTS if names[0] in part.column_names), None)
    if columns is None:
        raise ConfigError(f"tokenized_path: no column input_ids among {', '.join(part.column_names)} -> tokenise again")
    rows = part.select(places)
    lengths = np.array([[len(row) for row in rows[name]] for name in columns], dtype=np.float64).sum(axis=0)
    labels = lengths
    if "labels" in part.column_names and "kto_tags" not in part.column_names:  # there logits are made of all tokens
        labels = np.array([sum(label != _IGNORED for label in row) for row in rows["labels"]], dtype=np.float64)
    return Counted(lengths, labels)
