"""The sources of a run by their names, which are known before any row is read."""

from __future__ import annotations

from collections.abc import Sequence

MOST_SOURCES = 1000
"""Sources that one dataset may be split into: more are a mistake, such as a column of texts or of row numbers."""
LABEL_SUFFIXES = (".json", ".npy", ".txt")
"""Ends of the names of files with a label for each row."""


class NamedSources:
    """Sources in the order of the ``dataset`` key.

    Attributes:
        names: (K) their names.
    """

    names: tuple[str, ...]

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
