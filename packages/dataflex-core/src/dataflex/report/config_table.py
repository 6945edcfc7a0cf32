"""The configuration of a run, with what differs from the defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dataflex.config.arguments import DataflexArguments
from dataflex.config.resolved import NOTES, VERSIONS
from dataflex.report.record_lines import mapping
from dataflex.report.run_data import RunData
from dataflex.report.shown_run import Block, Section, Shown

_CELL = 400


def section(runs: Sequence[Shown]) -> Section | None:
    """Returns the section; None where no run has a configuration."""
    known = [shown for shown in runs if shown.run.config]
    if not known:
        return None
    lead = "Lines that are set apart differ from dataflex's defaults, or are written in the run's file."
    if len(known) > 1:
        return Section(
            "config", "Configuration", ("Lines that are set apart differ between the runs.",), (_side(known),)
        )
    return Section("config", "Configuration", (lead,), (_alone(known[0]),))


def _alone(shown: Shown) -> Block:
    defaults = {name: item.default for name, item in DataflexArguments.__dataclass_fields__.items()}
    rows = []
    for key, value in flat(shown.run).items():
        if key in defaults:
            default = "" if defaults[key] in (None, ()) else said(defaults[key])
            differs = said(value) != default
            rows.append([key, said(value), default or "none", differs])
        else:
            rows.append([key, said(value), "", True])
    return {
        "kind": "config", "title": "", "columns": ["key", "value", "dataflex's default"], "rows": rows,
        "filter": "only what differs", "wide": True,
    }  # fmt: skip


def _side(runs: Sequence[Shown]) -> Block:
    tables = [flat(shown.run) for shown in runs]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    rows = []
    for key in keys:
        cells = [said(table[key]) if key in table else "" for table in tables]
        rows.append([key, *cells, len(set(cells)) > 1 and key != "output_dir"])
    names = [shown.run.name for shown in runs]
    return {
        "kind": "config", "title": "", "columns": ["key", *names], "rows": rows, "filter": "only what differs",
        "wide": True,
    }  # fmt: skip


def flat(run: RunData) -> dict[str, Any]:
    """Returns key -> value of a run's configuration, the parameters of its components and the versions of packages."""
    found = {key: value for key, value in run.config.items() if key not in NOTES}
    for section_, presets in run.components.items():
        for preset, entry in mapping(presets).items():
            for name, value in mapping(mapping(entry).get("params")).items():
                found[f"{section_}.{preset}.{name}"] = value
    return found | {f"version of {name}": value for name, value in mapping(run.config.get(VERSIONS)).items()}


def said(value: Any) -> str:
    """Returns a value as it is written in a YAML, in one line."""
    if value is None:
        return ""
    if isinstance(value, str):
        text = value
    elif isinstance(value, Mapping | list | tuple | bool):
        text = json.dumps(value, ensure_ascii=False, default=str)
    else:
        text = str(value)
    return text if len(text) <= _CELL else f"{text[:_CELL]}..."
