"""The names under which experiment trackers get what the record has: a name with slashes is a group in all of them.

    dataflex/share/code  dataflex/rows_seen/code  dataflex/score/median  dataflex/weight/effective_share

From the lines of the trace, and so the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PREFIX = "dataflex"

Histogram = Mapping[str, Sequence[float]]
"""``edges``, (B + 1,) ascending, and ``counts``, (B,)."""


def update_metrics(lines: Iterable[Mapping[str, Any]], alone: bool) -> dict[str, float]:
    """Returns the numbers of an update, by their names.

    Args:
        lines: Its lines of the trace, one per axis that took part.
        alone: Whether the run has one axis; else each has a group of its own, such as ``dataflex/select``. A second
            filter is ``dataflex/filter_2``.

    Returns:
        Name -> number; ``dataflex/seconds`` is of the whole update.
    """
    lines = list(lines)
    metrics: dict[str, float] = {f"{PREFIX}/seconds": sum(line["seconds"] for line in lines)}
    for group, line in _grouped(lines, alone):
        metrics |= {f"{PREFIX}/update": line["update"], f"{group}/seconds": line["seconds"]}
        metrics |= _numbers(f"{group}/score", line.get("scores", {}))
        metrics |= _numbers(f"{group}/candidates", line.get("candidates", {}))
        metrics |= _numbers(f"{PREFIX}/share", line.get("proportions", {}))
        metrics |= _numbers(f"{PREFIX}/rows_seen", line.get("rows_seen", {}))
    return metrics


def update_histograms(lines: Iterable[Mapping[str, Any]], alone: bool) -> dict[str, Histogram]:
    """Returns the histograms of the scores of an update; see :func:`update_metrics`."""
    named = (("scores", "score"), ("candidates", "candidates"))
    found = {
        f"{group}/{name}/histogram": line.get(key, {}).get("histogram")
        for group, line in _grouped(lines, alone)
        for key, name in named
    }
    return {name: histogram for name, histogram in found.items() if histogram}


def weight_metrics(line: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a line of weights; none of an empty one."""
    named = ("mean", "min", "max", "effective_share")
    metrics = _numbers(f"{PREFIX}/weight", {key: line[key] for key in named if key in line})
    return metrics | _numbers(f"{PREFIX}/weight/source", line.get("sources", {}))


def loss_metrics(line: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a line of the losses by source; none of an empty one."""
    return _numbers(f"{PREFIX}/loss", {name: of["loss"] for name, of in line.get("sources", {}).items()})


def weight_histograms(line: Mapping[str, Any]) -> dict[str, Histogram]:
    """Returns the histogram of a line of weights, where it has one."""
    return {f"{PREFIX}/weight/histogram": line["histogram"]} if line.get("histogram") else {}


def _grouped(lines: Iterable[Mapping[str, Any]], alone: bool) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns each line with the group of its names."""
    groups: dict[str, int] = {}
    found = []
    for line in lines:
        number = groups[line["kind"]] = groups.get(line["kind"], 0) + 1
        group = f"{PREFIX}/{line['kind']}" + (f"_{number}" if number > 1 else "")
        found.append((PREFIX if alone else group, line))
    return found


def _numbers(group: str, values: Mapping[str, Any]) -> dict[str, float]:
    return {f"{group}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
