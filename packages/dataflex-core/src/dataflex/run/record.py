"""The record of a run in ``output_dir``: one line per update, and the rows of every segment."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.core.files import SELECTIONS, TRACE, move_aside, remove_unfinished, replacing
from dataflex.utils.logging import logger
from dataflex.utils.secret_values import scrubbed

_SEGMENT = re.compile(r"step_([0-9]{8,})\.npz")


class RunRecord:
    """Writes ``dataflex_trace.jsonl`` and ``dataflex_selections/step_NNNNNNNN.npz``.

    Args:
        output_dir: The run's folder.
        writes: Whether this rank writes; exactly one does.
    """

    def __init__(self, output_dir: str, writes: bool) -> None:
        self.folder = Path(output_dir)
        self._writes = writes

    def begin(self, step: int) -> None:
        """Starts the record at ``step`` global steps: what a stopped run wrote after its checkpoint is taken back."""
        if not self._writes:
            return
        self._take_back(step)
        remove_unfinished(self.folder)
        remove_unfinished(self.folder / SELECTIONS)
        for path in (self.folder / SELECTIONS).glob("step_*.npz"):
            named = _SEGMENT.fullmatch(path.name)  # other files there are not ours
            if named is None or int(named[1]) < step:
                continue
            if path.is_file():
                path.unlink()
            else:
                logger.warning("%s is no file: moved to %s", path, move_aside(path))

    def _take_back(self, step: int) -> None:
        """Leaves the lines before ``step`` in the trace. One that holds others than ours is kept beside it."""
        lines, unreadable = _lines(self.folder / TRACE)
        if unreadable:
            aside = move_aside(self.folder / TRACE)
            logger.warning(
                "%s has lines that are not ours, or damaged, the first of them line %d: moved to %s, and begun again "
                "with the others",
                self.folder / TRACE,
                unreadable[0],
                aside,
            )
        self._write([line for line in lines if line["step"] < step])

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        with replacing(self.folder / TRACE) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def take_back(self, kind: str, step: int | None) -> None:
        """Takes lines of a kind out of the trace from a step on: they are written again. None: there are no such.

        Args:
            kind: Their ``kind``.
            step: The first step of those that go.
        """
        if not self._writes or step is None:
            return
        lines, _ = _lines(self.folder / TRACE)
        kept = [line for line in lines if line.get("kind") != kind or line["step"] < step]
        if len(kept) < len(lines):
            self._write(kept)

    def update(self, line: Mapping[str, Any]) -> None:
        """Appends one line to the trace."""
        if self._writes:
            with open(self.folder / TRACE, "a", encoding="utf-8") as file:
                file.write(scrubbed(json.dumps(line)) + "\n")

    def segment(
        self,
        step: int,
        indices: NDArray[np.int64],
        scores: NDArray[np.float64] | None,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        """Writes the rows of the segment that begins after ``step`` steps, and what scores and weights they have."""
        if not self._writes:
            return
        given = {"indices": indices, "scores": scores, "weights": weights}
        arrays: dict[str, Any] = {name: array for name, array in given.items() if array is not None}
        with replacing(self.folder / SELECTIONS / f"step_{step:08d}.npz") as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)


def read_trace(folder: str | Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's trace; none where there is no file.

    A last line that was cut off by a crash is left out, and so is whatever is no line of a trace.
    """
    return _lines(Path(folder) / TRACE)[0]


def _lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Returns the lines of a trace, and the numbers, from 1, of those that are none."""
    found: list[dict[str, Any]] = []
    unreadable = []
    content = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, text in enumerate(content[:-1], 1):  # every whole line ends with a newline
        try:
            line = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError):
            line = None
        step = line.get("step") if isinstance(line, dict) else None
        if isinstance(step, int) and not isinstance(step, bool):
            found.append(line)
        else:
            unreadable.append(number)
    return found, unreadable


def summary(scores: NDArray[np.float64] | None) -> dict[str, float]:
    """Returns mean, standard deviation, minimum, median and maximum of the finite scores, or nothing without any."""
    finite = np.empty(0) if scores is None else scores[np.isfinite(scores)]
    if not finite.size:
        return {}
    return {
        "mean": float(finite.mean()),
        "std": float(finite.std()),
        "min": float(finite.min()),
        "median": float(np.median(finite)),
        "max": float(finite.max()),
    }
