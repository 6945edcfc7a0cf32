"""The sources of a run by their names, which are known before any row is read."""

from __future__ import annotations

from collections.abc import Sequence


class NamedSources:
    """Sources in the order of the ``dataset`` key.

    Attributes:
        names: (K) their names.
    """

    names: tuple[str, ...]

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
