"""The file of a sweep's outcomes: JSON, a class on each line, so that a change of one is one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(report: Mapping[str, Any], file: Path) -> None:
    """Writes a report with ``classes``, a mapping from names to outcomes."""
    head = json.dumps({key: value for key, value in report.items() if key != "classes"})
    lines = [f"{json.dumps(name)}: {json.dumps(outcome)}" for name, outcome in report["classes"].items()]
    file.write_text(head[:-1] + ', "classes": {\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8")
