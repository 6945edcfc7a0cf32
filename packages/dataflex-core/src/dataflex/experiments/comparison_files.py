"""``comparison.json``, ``comparison.md`` and ``comparison.csv``, the table that is printed, and the report's page."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflex.core.files import replacing
from dataflex.utils.secret_values import scrubbed

JSON, MARKDOWN, CSV = "comparison.json", "comparison.md", "comparison.csv"


def write(folder: Path, found: Mapping[str, Any]) -> None:
    """Writes the three files.

    Args:
        folder: The comparison's.
        found: What :func:`dataflex.experiments.verdicts.comparison` returned.
    """
    for name, text in ((JSON, json.dumps(found, indent=1, allow_nan=False) + "\n"), (MARKDOWN, markdown(found))):
        with replacing(folder / name) as temporary:
            temporary.write_text(scrubbed(text), encoding="utf-8")
    with replacing(folder / CSV) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(_lines(found))


def write_page(folder: Path, found: Mapping[str, Any]) -> Path:
    """Writes the report's page with the runs that are there; returns its path."""
    from dataflex.report.write import write_report  # here: help needs no NumPy

    runs = [
        (Path(path), f"{arm['name']}, seed {seed}")
        for arm in found["arms"]
        for path, seed in zip(arm["folders"], found["seeds"], strict=True)
        if Path(path).is_dir()
    ]
    folders, names = [path for path, _ in runs], [name for _, name in runs]
    return write_report(folders, into=folder, names=names, comparison=found)


def markdown(found: Mapping[str, Any]) -> str:
    """Returns the tables and sentences as Markdown."""
    parts = [f"# Comparison: {found['base']}\n"]
    parts += [f"{says}\n" for says in found["says"]]
    for metric in found["metrics"]:
        head, *rows = metric_rows(found, metric)
        parts.append(f"## {metric}\n")
        lines = [head, ["---"] * len(head), *rows]
        parts.append("".join(f"| {' | '.join(_escaped(cell) for cell in line)} |\n" for line in lines))
    return "\n".join(parts)


def text(found: Mapping[str, Any]) -> str:
    """Returns the tables and sentences as they are printed."""
    parts = []
    for metric in found["metrics"]:
        rows = metric_rows(found, metric)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        parts.append(f"{metric}\n" + "".join(f"  {line.rstrip()}\n" for line in lines))
    return "\n".join([*parts, "".join(f"{says}\n" for says in found["says"])])


def metric_rows(found: Mapping[str, Any], metric: str) -> list[list[str]]:
    """Returns the cells of a metric's table, the head first."""
    arms = found["metrics"][metric]["arms"]
    rows = [
        [
            "arm",
            "mean",
            "std",
            "difference",
            "interval",
            "bootstrap",
            "seeds won",
            "steps",
            "tokens",
            "seconds",
            "verdict",
        ]
    ]
    for arm in found["arms"]:
        cells = arms[arm["name"]]
        difference = _number(cells["difference"], "+.3g")
        rows.append([
            arm["name"],
            _number(cells["mean"], ".4g"),
            _number(cells["std"], ".2g"),
            difference if cells["against"] is None or difference == "-" else f"{difference} to {cells['against']}",
            _interval(cells["low"], cells["high"]),
            _interval(cells["bootstrap_low"], cells["bootstrap_high"]),
            "-" if cells["wins"] is None else f"{cells['wins']} of {cells['seeds']}",
            _mean(arm["steps"], ",.0f"),
            _mean(arm["tokens"], ",.0f"),
            _mean(arm["seconds"], ",.1f"),
            _verdict(arm, cells),
        ])  # fmt: skip
    return rows


def _verdict(arm: Mapping[str, Any], cells: Mapping[str, Any]) -> str:
    failed = f"{len(arm['failed'])} failed" if arm["failed"] else ""
    verdict = cells["verdict"] or ("reference" if cells["against"] is None else "control")
    return ", ".join(filter(None, (verdict, failed)))


def _mean(values: Sequence[float | None], form: str) -> str:
    there = [value for value in values if value is not None]
    return format(sum(there) / len(there), form) if there else "-"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:+.3g} to {high:+.3g}"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _lines(found: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Yields a line for each run."""
    metrics = list(found["metrics"])
    yield ["arm", "control", "seed", "failed", "steps", "tokens", "seconds", "compute", *metrics, "folder"]
    for arm in found["arms"]:
        for number, seed in enumerate(found["seeds"]):
            costs = [arm[key][number] for key in ("steps", "tokens", "seconds", "compute")]
            values = [found["metrics"][metric]["arms"][arm["name"]]["values"][number] for metric in metrics]
            yield [arm["name"], arm["control"], seed, seed in arm["failed"], *costs, *values, arm["folders"][number]]
