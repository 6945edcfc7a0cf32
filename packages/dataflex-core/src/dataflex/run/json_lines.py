"""Files of one JSON object per line: appended to while a run goes on, and cut back when it is resumed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dataflex.core.files import replacing
from dataflex.utils.secret_values import scrubbed


def plain(value: Any) -> Any:
    """Returns a value as JSON has it: numbers that are not finite as null, texts without secrets.

    What is no number, text, mapping or sequence becomes its text.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {scrubbed(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    return scrubbed(str(value))


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Returns the objects of a file, none where there is no file, and the numbers, from 1, of lines that are none.

    A last line that was cut off by a crash is left out: every whole line ends with a newline.
    """
    found: list[dict[str, Any]] = []
    unreadable = []
    content = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    for number, text in enumerate(content[:-1], 1):
        try:
            line = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict):
            found.append(line)
        else:
            unreadable.append(number)
    return found, unreadable


def append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Appends lines to a file, which is made where it is missing."""
    text = "".join(json.dumps(plain(line)) + "\n" for line in lines)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def rewrite(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file anew; a reader never sees half of it."""
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def keep(path: Path, wanted: Callable[[int, dict[str, Any]], bool]) -> None:
    """Leaves those lines of a file of which ``wanted(number, line)`` holds; numbers begin at 0. None: no file."""
    if not path.exists():
        return
    lines, unreadable = read_lines(path)
    kept = [line for number, line in enumerate(lines) if wanted(number, line)]
    cut_off = not path.read_bytes().endswith(b"\n")
    if len(kept) < len(lines) or unreadable or cut_off:
        rewrite(path, kept)


def step_of(line: Mapping[str, Any]) -> int | None:
    """Returns the step that a line is of; None where it does not say."""
    step = line.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) else None
