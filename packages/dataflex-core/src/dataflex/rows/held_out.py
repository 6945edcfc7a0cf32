"""How many rows each source gives to ``val_size``."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dataflex.core.errors import ConfigError


def held_out_rows(sizes: Mapping[str, int], val_size: float) -> dict[str, int]:
    """Returns how many rows to hold out of each source; every source keeps one row to train on.

    A number of 1 or more is the rows of all sources together, apportioned by their sizes (largest remainder, the first
    source of two alike). A fraction is taken of each source and rounded up, as LLaMA-Factory rounds that of the whole.

    Args:
        sizes: Source -> its rows.
        val_size: As in the configuration.

    Raises:
        ConfigError: A source would have no row left.
    """
    if val_size < 1:
        counts = {name: math.ceil(val_size * size) for name, size in sizes.items()}
        emptied = {name: sizes[name] for name in sizes if counts[name] >= sizes[name]}
        if emptied:
            raise ConfigError(
                f"val_size: {val_size:g} of each source leaves no row to train on of {_sized(emptied)} -> add rows to "
                "it, set a smaller val_size, or take it out of dataset"
            )
        return counts
    total = int(val_size)
    room = {name: max(0, size - 1) for name, size in sizes.items()}
    if total > sum(room.values()):
        raise ConfigError(
            f"val_size: {total} rows cannot be held out of {_sized(sizes)}, as each source needs a row to train on -> "
            f"set val_size to {sum(room.values())} or less, or take the smallest source out of dataset"
        )
    return _apportioned(sizes, room, total)


def evenly(names: list[str], val_size: float) -> dict[str, int]:
    """Returns how many rows to hold out of each source where nobody knows their sizes: equally many, the rest first."""
    share, rest = divmod(int(val_size), len(names))
    return {name: share + (place < rest) for place, name in enumerate(names)}


def in_words(counts: Mapping[str, int]) -> str:
    """Returns ``2 rows of a, 1 row of b, none of c``."""
    return ", ".join(
        f"none of {name}" if not count else f"{count} row{'s' * (count > 1)} of {name}"
        for name, count in counts.items()
    )


def _apportioned(sizes: Mapping[str, int], room: Mapping[str, int], total: int) -> dict[str, int]:
    whole = sum(sizes.values())
    counts = {name: min(room[name], total * size // whole) for name, size in sizes.items()}
    while sum(counts.values()) < total:  # once for what rounding left; again where a source has no room for its share
        open_ = [name for name in sizes if counts[name] < room[name]]
        open_.sort(key=lambda name: counts[name] - total * sizes[name] / whole)  # sorting keeps the order of two alike
        for name in open_[: total - sum(counts.values())]:
            counts[name] += 1
    return counts


def _sized(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({size} row{'s' * (size != 1)})" for name, size in sizes.items())
