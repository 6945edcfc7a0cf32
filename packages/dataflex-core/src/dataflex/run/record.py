"""The record of a run in ``output_dir``: its lines, and the rows of every segment."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from dataflex.core.files import (
    LAST_SCORES,
    METRICS,
    ROW_SOURCES,
    SEGMENTS,
    SELECTIONS,
    TRACE,
    WHY,
    move_aside,
    remove_unfinished,
    replacing,
)
from dataflex.run.json_lines import append, keep, read_lines, rewrite, step_of
from dataflex.utils.logging import logger

_SEGMENT = re.compile(r"step_([0-9]{8,})\.npz")


class RunRecord:
    """Writes what grows with the run: its trace, metrics and segments, the rows of these, and the last scores.

    Args:
        output_dir: The run's folder.
        writes: Whether this rank writes; exactly one does.
    """

    def __init__(self, output_dir: str, writes: bool) -> None:
        self.folder = Path(output_dir)
        self._writes = writes
        self._recorded: set[int] = set()  # segments that an earlier start of the run has a line of

    def begin(self, step: int, metrics: int = 0) -> None:
        """Starts the record at ``step`` global steps: what a stopped run wrote after its checkpoint is taken back.

        Args:
            step: Steps done.
            metrics: How many lines the run had logged when they were done.
        """
        if not self._writes:
            return
        self._take_back(step)
        keep(self.folder / METRICS, lambda number, _: number < metrics)
        keep(self.folder / SEGMENTS, lambda _, line: _before(line, step))
        self._recorded = {line["step"] for line in read_lines(self.folder / SEGMENTS)[0]}
        keep(self.folder / WHY, lambda _, line: _before(line, step))
        scores = self.last_scores()
        if scores is None or not _before(scores, step):
            (self.folder / LAST_SCORES).unlink(missing_ok=True)
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
        rewrite(self.folder / TRACE, lines)

    def take_back(self, kind: str, step: int | None) -> None:
        """Takes lines of a kind out of the trace, and out of the explanations, from a step on: they are written again.

        Args:
            kind: Their ``kind``.
            step: The first step of those that go; None where there are no such.
        """
        if not self._writes or step is None:
            return
        keep(self.folder / WHY, lambda _, line: line.get("kind") != kind or _before(line, step))
        lines, _ = _lines(self.folder / TRACE)
        kept = [line for line in lines if line.get("kind") != kind or line["step"] < step]
        if len(kept) < len(lines):
            self._write(kept)

    def why(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Appends lines to the explanations of rows."""
        if self._writes and lines:
            append(self.folder / WHY, lines)

    def update(self, line: Mapping[str, Any]) -> None:
        """Appends one line to the trace."""
        if self._writes:
            append(self.folder / TRACE, [line])

    def metrics(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Appends what was logged to the metrics."""
        if self._writes:
            append(self.folder / METRICS, lines)

    def segment_line(self, line: Mapping[str, Any]) -> None:
        """Appends a line about a file of selections; one about the same file, written before a resume, goes."""
        if self._writes:
            if line["step"] in self._recorded:
                keep(self.folder / SEGMENTS, lambda _, other: other.get("step") != line["step"])
            append(self.folder / SEGMENTS, [line])

    def chosen_rows(self) -> Iterator[NDArray[np.int64]]:
        """Yields the rows of each segment that is on disk, in their order; a damaged file is passed over."""
        for path in sorted((self.folder / SELECTIONS).glob("step_*.npz")):
            if _SEGMENT.fullmatch(path.name) is not None:
                found = _arrays(path, ("indices",))
                if found is not None:
                    yield found["indices"]

    def segment_lines(self) -> list[dict[str, Any]]:
        """Returns the lines of the segments, in the order of writing."""
        return read_lines(self.folder / SEGMENTS)[0]

    def scores(self, scores_N: NDArray[np.floating[Any]], step: int, run: str, component: str) -> None:
        """Writes the scores that a selector gave all its candidates at the last update: (N,), NaN for none."""
        if not self._writes:
            return
        with replacing(self.folder / LAST_SCORES) as temporary, open(temporary, "wb") as file:
            np.savez(file, scores=scores_N, step=step, run=run, component=component)

    def row_sources(self, names: Sequence[str], codes_N: NDArray[np.integer[Any]] | None, run: str) -> None:
        """Writes the number of each row's source: (N,); deletes the file where ``None`` says that rows are in order."""
        if not self._writes:
            return
        if codes_N is None:
            (self.folder / ROW_SOURCES).unlink(missing_ok=True)
            return
        with replacing(self.folder / ROW_SOURCES) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, sources=codes_N, names=np.array(names, dtype=np.str_), run=run)

    def last_scores(self) -> dict[str, Any] | None:
        """Returns ``step``, ``run`` and ``component`` of the last scores; None where there are none to be read."""
        found = _arrays(self.folder / LAST_SCORES, ("step", "run", "component"))
        return None if found is None else {key: array.item() for key, array in found.items() if array.size == 1}

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


def _arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]] | None:
    """Returns some arrays of an archive; None where it is not there, or damaged."""
    try:
        with open(path, "rb") as file, np.load(file) as found:  # which leaves a file of its own open where it fails
            return {name: found[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
        return None


def _before(line: Mapping[str, Any], step: int) -> bool:
    own = step_of(line)
    return own is not None and own < step


def read_trace(folder: str | Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's trace; none where there is no file.

    A last line that was cut off by a crash is left out, and so is whatever is no line of a trace.
    """
    return _lines(Path(folder) / TRACE)[0]


def read_updates(folder: str | Path) -> list[dict[str, Any]]:
    """Returns those lines of a run's trace that are about decisions; those of weights and losses are not."""
    return [line for line in read_trace(folder) if "update" in line]


def _lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Returns the lines of a trace, and the numbers, from 1, of those that are none."""
    found, unreadable = read_lines(path)
    kept = [line for line in found if step_of(line) is not None]
    return kept, unreadable or [number for number, line in enumerate(found, 1) if step_of(line) is None]
