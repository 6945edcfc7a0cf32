"""One HTML text: style, script and data inside of it, so that it opens from disk and asks nobody for anything."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from dataflex.report import (
    config_table,
    header_words,
    loss_plots,
    reward_plots,
    score_plots,
    seen_plots,
    share_plots,
    time_plots,
    weight_plots,
)
from dataflex.report.comparison_block import comparison_section
from dataflex.report.harmless import harmless, in_script, know_secrets, without_secrets
from dataflex.report.record_lines import objects
from dataflex.report.row_table import rows_block
from dataflex.report.run_reader import read_run
from dataflex.report.seen_rows import seen_rows
from dataflex.report.shown_run import Section, Shown

MARK = "dataflex report"
"""What the page's generator is called: a file with this mark is ours, and may be written over."""
MOST = 5_000_000
"""Bytes that a page has at most."""
_PLACE = re.compile("@([A-Z]+)@")
_ROOM = 3_200_000
_PANELS = 8
_STYLES = ("uplot/uPlot.min.css", "report.css")
_SCRIPTS = ("uplot/uPlot.iife.min.js", "elements.js", "plots.js", "blocks.js", "rows.js", "page.js")


def report_html(
    folders: Sequence[str | Path], names: Sequence[str] | None = None, comparison: Mapping[str, Any] | None = None
) -> str:
    """Returns the page as text, for a notebook or a file.

    Args:
        folders: The folders of the runs, the first of them first.
        names: What the page calls them; the names of their folders where none are given.
        comparison: What ``dataflex-cli compare FILE`` has found, for a page that begins with it.

    Raises:
        ConfigError: A folder is none, or holds no run.
    """
    know_secrets()
    found = [Path(folder) for folder in folders]
    called = list(names) if names is not None else _told_apart(found)
    arms = _arm_of(comparison, found)
    runs = [
        _shown(path, name, number, arms, len(found))
        for number, (path, name) in enumerate(zip(found, called, strict=True))
    ]
    tones = share_plots.source_tones([shown.seen for shown in runs])
    runs = [replace(shown, sources=tones) for shown in runs]
    room = _ROOM
    while True:
        text = _assembled(runs, comparison, room)
        if len(text.encode("utf-8")) <= MOST or room < 1000:
            return text
        room //= 2


def _told_apart(folders: Sequence[Path]) -> list[str]:
    """Returns the last parts of the folders' paths, as many as tell them apart."""
    parts = [folder.absolute().parts for folder in folders]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{folder.name} ({number})" for number, folder in enumerate(folders, 1)]


def _arm_of(comparison: Mapping[str, Any] | None, folders: Sequence[Path]) -> list[tuple[int, int]] | None:
    """Returns (arm, seed) of each folder, counted from 0; None where there is no comparison, or it names others."""
    places: dict[Path, tuple[int, int]] = {}
    for arm, said in enumerate(objects((comparison or {}).get("arms"))):
        for seed, folder in enumerate(said.get("folders") or []):
            places[Path(str(folder)).absolute()] = arm, seed
    found = [places.get(folder.absolute()) for folder in folders]
    return [place for place in found if place is not None] if found and None not in found else None


def _shown(path: Path, name: str, number: int, arms: list[tuple[int, int]] | None, of: int) -> Shown:
    notes: list[str] = []
    run = read_run(path, harmless(name, 120)[0])
    seen = seen_rows(run, notes.append)
    extra = [*notes[:3], *([f"and {len(notes) - 3} more files that cannot be read"] if len(notes) > 3 else [])]
    run = replace(run, notes=(*run.notes, *extra))
    if arms is None:
        return Shown(run, seen, number, number % 8, number // 8 % 4, of <= _PANELS or number < _PANELS)
    arm, seed = arms[number]
    return Shown(run, seen, number, arm % 8, seed % 4, seed == 0)


def _assembled(runs: Sequence[Shown], comparison: Mapping[str, Any] | None, room: int) -> str:
    sections: list[Section] = []
    if comparison is not None:
        tones = {str(arm.get("name")): place % 8 for place, arm in enumerate(objects(comparison.get("arms")))}
        sections.append(comparison_section(comparison, tones))
    panels = [shown for shown in runs if shown.panel]
    rows = [block for shown in panels if (block := rows_block(shown, room // len(panels))) is not None]
    found = [
        loss_plots.section(runs),
        share_plots.section(runs),
        score_plots.section(runs),
        Section("rows", "The rows", (), tuple(rows)) if rows else None,
        seen_plots.section(runs),
        loss_plots.by_source_section(runs),
        reward_plots.section(runs),
        weight_plots.section(runs),
        score_plots.order_section(runs),
        time_plots.section(runs),
        config_table.section(runs),
    ]
    sections += [section for section in found if section is not None]
    data = {
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "panels": len(panels),
        "verdict": None if comparison is None else [str(each) for each in comparison.get("says") or []],
        "runs": [_run(shown) for shown in runs],
        "sections": [section.to_dict() for section in sections],
    }
    return _document(_title(runs, comparison), without_secrets(data))


def _title(runs: Sequence[Shown], comparison: Mapping[str, Any] | None) -> str:
    names = [shown.run.name for shown in runs]
    said = names[0] if len(names) == 1 else f"{len(names)} runs" if len(names) > 3 else " and ".join(names)
    return f"{'Comparison' if comparison is not None else 'Report'} of {said}"


def _run(shown: Shown) -> dict[str, Any]:
    run = shown.run
    return {
        "name": run.name,
        "folder": str(run.folder),
        "tone": shown.tone,
        "dash": shown.dash,
        "panel": shown.panel,
        "state": run.state,
        "old": run.old,
        "state_says": run.state_says,
        "does": run.does or run.train_type.replace("_", " "),
        "says": header_words.sentences(shown),
        "facts": header_words.facts(shown),
        "line": dict(header_words.summary_line(shown)),
        "notes": list(run.notes),
        "warnings": [list(warning) for warning in run.warnings[:100]],
    }


def _document(title: str, data: Mapping[str, Any]) -> str:
    assets = files("dataflex.report").joinpath("assets")

    def read(name: str) -> str:
        return assets.joinpath(name).read_text(encoding="utf-8")

    parts = {
        "TITLE": html.escape(str(without_secrets(title))),
        "MARK": MARK,
        "STYLE": "\n".join(map(read, _STYLES)),
        "SCRIPT": "\n".join(f"<script>{read(name)}</script>" for name in _SCRIPTS),
        "DATA": in_script(data),
    }
    return _PLACE.sub(lambda place: parts[place[1]], read("page.html"))
