"""The segments of a run: which files hold their rows, and which update chose them."""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflex.core.files import SEGMENTS, SELECTIONS
from dataflex.report.record_lines import Say, mapping, read_lines, whole
from dataflex.report.run_data import PlannedSegment

_FILE = re.compile("step_([0-9]{8,})[.]npz")
_DECIDES = ("select", "mix", "order")


def planned_segments(folder: Path, trace: Sequence[Mapping[str, Any]], say: Say) -> tuple[PlannedSegment, ...]:
    """Returns the segments whose files are there, in order.

    An update chose the rows of all files from its step to the next one: a mixed run writes a long stretch in several.
    """
    said = {str(line.get("file")): line for line in read_lines(folder / SEGMENTS, say)}
    found = folder / SELECTIONS
    files = {path.name: int(named[1]) for path in found.glob("step_*.npz") if (named := _FILE.fullmatch(path.name))}
    gone = len(said.keys() - files.keys())
    if gone:
        say(f"{gone} of the {len(said)} files in {SELECTIONS} are missing: their rows are not counted")
    updates = {
        int(line["step"]): int(line["update"])
        for line in trace
        if line.get("kind") in _DECIDES and whole(line.get("update")) is not None
    }
    at = sorted(updates)
    segments = []
    for name, step in sorted(files.items(), key=lambda item: item[1]):
        line = said.get(name, {})
        place = bisect.bisect_right(at, step) - 1
        update = whole(line.get("update"))
        if update is None and place >= 0:
            update = updates[at[place]]
        sources = {
            source: (whole(each.get("rows")) or 0, whole(each.get("tokens")))
            for source, each in mapping(line.get("sources")).items()
            if isinstance(each, dict)
        }
        segments.append(
            PlannedSegment(
                step,
                found / name,
                update,
                update is not None,
                whole(line.get("steps")),
                whole(line.get("tokens")),
                sources,
            )
        )
    return tuple(segments)
