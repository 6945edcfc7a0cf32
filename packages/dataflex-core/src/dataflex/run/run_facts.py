"""``dataflex_run.json``: which run this is, how far it is, what its time went to, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dataflex.config.spec import RunSpec
from dataflex.config.summary import in_words
from dataflex.core.files import RUN, replacing
from dataflex.core.kinds import MIXER, ORDER, SELECTOR
from dataflex.run.json_lines import plain

VERSION = 1
RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"
_ONE_LINE = 500  # characters of an error


def write_facts(folder: str | Path, facts: Mapping[str, Any]) -> None:
    """Writes the file, whole or not at all. On one rank."""
    with replacing(Path(folder) / RUN, durable=facts["status"] != RUNNING) as temporary:
        temporary.write_text(json.dumps(plain({"version": VERSION, **facts}), indent=1), encoding="utf-8")


def read_facts(folder: str | Path, run: str) -> dict[str, Any]:
    """Returns what the file says of a run; empty where it is not there, damaged, or of another run."""
    try:
        found = json.loads((Path(folder) / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get("run") == run else {}


def what_runs(spec: RunSpec) -> dict[str, Any]:
    """Returns what a run does: in words, its ``train_type``, and its components in the order in which they act."""
    parts = [part for part in (*spec.filters, spec.mixer, spec.selector, spec.order, spec.weighter) if part is not None]
    named = [(_verb(part.component.kind, part.keep), part.component.name, part.component.preset) for part in parts]
    listed = [{"kind": kind, "component": name, "preset": preset} for kind, name, preset in named]
    return {"does": in_words(spec), "train_type": spec.arguments.train_type, "parts": listed}


def dataset_name(spec: RunSpec) -> str:
    """Returns what the train dataset of a run of one source is called: its ``dataset`` key, or ``train``."""
    named = spec.llamafactory.get("dataset")
    if isinstance(named, list | tuple):
        return ",".join(map(str, named)) or "train"
    return str(named) if named else "train"


def now() -> str:
    """Returns the time in ISO form, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def one_line(error: BaseException) -> str:
    """Returns an error as one line, with its kind where the message alone would say too little."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_ONE_LINE] if text else type(error).__name__


def _verb(kind: Any, keep: float | None) -> str:
    """Returns the kind of the lines that a component has in the trace."""
    if kind is SELECTOR:
        return "select" if keep is None else "filter"
    return {MIXER: "mix", ORDER: "order"}.get(kind, "weight")
