"""The record of a run in ``output_dir``: one line per update, and the rows of every segment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.run.files import SELECTIONS, TRACE, remove_unfinished, replacing


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
        kept = [line for line in read_trace(self.folder) if line["step"] < step]
        with replacing(self.folder / TRACE) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        remove_unfinished(self.folder)
        remove_unfinished(self.folder / SELECTIONS)
        for path in (self.folder / SELECTIONS).glob("step_*.npz"):
            if int(path.stem.removeprefix("step_")) >= step:
                path.unlink()

    def update(self, line: Mapping[str, Any]) -> None:
        """Appends one line to the trace."""
        if self._writes:
            with open(self.folder / TRACE, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def segment(self, step: int, indices: NDArray[np.int64], scores: NDArray[np.float64] | None) -> None:
        """Writes the rows of the segment that begins after ``step`` steps, and their scores where there are any."""
        if not self._writes:
            return
        arrays = {"indices": indices} if scores is None else {"indices": indices, "scores": scores}
        with replacing(self.folder / SELECTIONS / f"step_{step:08d}.npz") as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)


def read_trace(folder: str | Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's trace; none where there is no file. A last line cut off by a crash is left out."""
    path = Path(folder) / TRACE
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines[:-1]]  # every whole line ends with a newline


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
