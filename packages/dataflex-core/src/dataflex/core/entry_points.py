"""Entry points of the installed packages, read once for as long as no folder of packages changes.

Reading them opens a file of every installed package: 10 ms, and a run asks some fifty times. A package that is
installed while a notebook's kernel lives changes its folder, and is seen.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from importlib import metadata
from importlib.metadata import EntryPoint


def entry_points(group: str) -> list[EntryPoint]:
    """Returns the entry points of a group, as :func:`importlib.metadata.entry_points` does."""
    return list(_read(group, package_places()))


def package_places() -> tuple[tuple[str, int], ...]:
    """Returns the places that packages are found in, each with the time of its last change: a key for what was read."""
    return tuple((place, _changed(place)) for place in sys.path)


def _changed(place: str) -> int:
    try:
        return os.stat(place or ".").st_mtime_ns
    except OSError:  # named and not there, as a folder of zipped modules often is
        return 0


@lru_cache
def _read(group: str, folders: tuple[tuple[str, int], ...]) -> metadata.EntryPoints:
    return metadata.entry_points(group=group)
