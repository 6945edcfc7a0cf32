"""Reading the files of a record. Nothing here raises: what is missing or damaged is said in words, and passed over."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Say = Callable[[str], None]


def read_object(path: Path, say: Say) -> dict[str, Any]:
    """Returns the object in a JSON file; empty where there is none.

    Args:
        path: The file.
        say: Called with a sentence about a file that is there and cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        say(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(content, dict):
        say(f"{path.name} holds no object: left out")
        return {}
    return content


def read_lines(path: Path, say: Say) -> Iterator[dict[str, Any]]:
    """Yields the objects in a file of JSON lines, one line at a time; a last line that was cut off is passed over."""
    damaged = 0
    try:
        with open(path, "rb") as file:
            for text in file:
                try:
                    line = json.loads(text.decode("utf-8"))
                except (ValueError, RecursionError):
                    line = None
                if isinstance(line, dict):
                    yield line
                elif text.endswith(b"\n"):  # else a run is writing it, or was killed while it did
                    damaged += 1
    except FileNotFoundError:
        return
    except OSError as error:
        say(f"{path.name} cannot be read: {error}")
        return
    if damaged:
        say(f"{path.name} has {damaged} {'line' if damaged == 1 else 'lines'} that cannot be read: left out")


def number(value: Any) -> float | None:
    """Returns a finite number; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def whole(value: Any) -> int | None:
    """Returns a whole number from 0; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return None


def mapping(value: Any) -> dict[str, Any]:
    """Returns a mapping with texts as keys; empty for anything else."""
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """Returns the mappings in a list; none for anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def numbers(value: Any) -> list[float | None]:
    """Returns a list with None for what is no finite number; empty for anything but a list."""
    return [number(item) for item in value] if isinstance(value, list) else []
