"""Reads the numbers that the methods' official programs gave. Nothing in the files of ``golden/`` is ours to adjust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("golden")


def golden_cases(name: str) -> list[dict[str, Any]]:
    """Returns the cases of ``golden/<name>.json``."""
    content = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return content if isinstance(content, list) else content["cases"]
