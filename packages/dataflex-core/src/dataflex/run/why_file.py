"""``dataflex_why.jsonl``: which target rows pulled the scores and weights of rows, a line for each explained row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dataflex.core.files import WHY, move_aside, replacing
from dataflex.utils.logging import logger
from dataflex.utils.secret_values import scrubbed


class WhyFile:
    """Writes the file of a run. On a rank that does not write, its methods do nothing.

    Args:
        output_dir: The run's folder.
        writes: Whether this rank writes; exactly one does.
    """

    def __init__(self, output_dir: str, writes: bool) -> None:
        self.path = Path(output_dir) / WHY
        self._writes = writes

    def begin(self, step: int, weights_from: int | None = None) -> None:
        """Takes back the lines of a stopped run after its checkpoint. Lines that cannot be read are kept beside it.

        Args:
            step: Global optimizer steps done; lines of this step and later ones are written again.
            weights_from: The same for lines of weights, where the checkpoint holds weights of steps before it whose
                line was not written yet; None where it holds none.
        """
        if not self._writes or not self.path.exists():
            return
        lines, unreadable = read_lines(self.path)
        if unreadable:
            aside = move_aside(self.path)
            logger.warning("%s has %d lines that cannot be read: moved to %s", self.path, unreadable, aside)
        weights = step if weights_from is None else min(step, weights_from)
        kept = [line for line in lines if line["step"] < (weights if "weight" in line else step)]
        if not kept:
            self.path.unlink(missing_ok=True)
            return
        with replacing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Appends lines."""
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        if self._writes and text:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(scrubbed(text))


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Returns the lines of the file, and how many others there are.

    A last line without an end, cut off by a crash, is neither.
    """
    found, unreadable = [], 0
    content = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for text in content[:-1]:
        try:
            line = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and type(line.get("step")) is int:
            found.append(line)
        else:
            unreadable += 1
    return found, unreadable
