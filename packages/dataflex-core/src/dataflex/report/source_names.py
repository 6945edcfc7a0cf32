"""The sources of the train dataset, and which of them a row belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.report.record_lines import mapping, number, objects, whole
from dataflex.report.run_data import RowText, RunSource


def source_list(about: Mapping[str, Any], trace: Sequence[Mapping[str, Any]]) -> tuple[RunSource, ...]:
    """Returns the sources of a run in the order of their rows; empty where they are not known."""
    said = [
        RunSource(
            str(each.get("name")),
            whole(each.get("first")),
            whole(each.get("rows")),
            whole(each.get("tokens")),
            _words(each.get("words")),
        )
        for each in objects(about.get("sources"))
    ]
    in_order = all(source.first is not None for source in said)
    return tuple(sorted(said, key=lambda source: source.first or 0) if in_order else said) or _of_old(trace)


def _words(found: Any) -> tuple[str, ...]:
    return tuple(map(str, found)) if isinstance(found, list) else ()


def _of_old(trace: Sequence[Mapping[str, Any]]) -> tuple[RunSource, ...]:
    """Returns the sources of a run that recorded none: the rows and passes of a mixer's lines tell their sizes.

    ``passes`` has 6 digits after the point: the size is taken from the line with the most passes, and not at all where
    these digits leave it open, since a row would be counted for another source.
    """
    sizes: dict[str, tuple[float, int]] = {}
    for line in trace:
        seen, passes = mapping(line.get("rows_seen")), mapping(line.get("passes"))
        for name, rows in seen.items():
            share, count = number(passes.get(name)), whole(rows)
            if share and count and share > sizes.get(name, (0.0, 0))[0] and count / share**2 * 5e-7 < 0.4:
                sizes[name] = share, round(count / share)
    names = next((list(mapping(line.get("rows_seen"))) for line in trace if mapping(line.get("rows_seen"))), [])
    if not names or any(name not in sizes for name in names):
        return ()
    first, found = 0, []
    for name in names:
        found.append(RunSource(name, first, sizes[name][1]))
        first += sizes[name][1]
    return tuple(found)


def source_places(sources: Sequence[RunSource], rows_R: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns (R,) the place of each row's source in the list of them, which says where each begins."""
    firsts = np.array([source.first for source in sources], dtype=np.int64)
    places: NDArray[np.int64] = np.searchsorted(firsts, rows_R, side="right").astype(np.int64) - 1
    return np.clip(places, 0, None)


def finer(sources: Sequence[RunSource], texts: Mapping[int, RowText], rows: int | None) -> list[str | None] | None:
    """Returns the source of each row where the rows of one dataset carry several, and all are known; else None."""
    if len(sources) > 1 or not rows or len(texts) < rows:
        return None
    named = [texts[row].source if row in texts else None for row in range(rows)]
    return named if None not in named and len(set(named)) > 1 else None
