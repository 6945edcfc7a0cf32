"""Reading the files of a record that speak of single rows: their texts, why they were chosen, their last scores."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.core.files import LAST_SCORES, ROW_SOURCES, ROWS, WHY
from dataflex.report.harmless import harmless
from dataflex.report.record_lines import Say, number, objects, read_lines, whole
from dataflex.report.run_data import Reason, RowText

CHARACTERS = 2000
"""Most characters of a row that the page shows, whatever the record holds."""
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
"""What reading an archive of NumPy that is damaged may raise."""


def read_texts(folder: Path, say: Say) -> tuple[dict[int, RowText], dict[tuple[str, int], RowText]]:
    """Returns the texts of rows by number, and those of target rows by set and number."""
    rows: dict[int, RowText] = {}
    targets: dict[tuple[str, int], RowText] = {}
    for line in read_lines(folder / ROWS, say):
        row, target, text = whole(line.get("row")), whole(line.get("target")), line.get("text")
        if not isinstance(text, str):
            continue
        shown, cut = harmless(text, CHARACTERS)
        source = line.get("source")
        found = RowText(
            shown,
            cut or line.get("cut") is True,
            str(source) if source is not None else None,
            whole(line.get("tokens")),
        )
        if row is not None:
            rows[row] = found
        elif target is not None:
            targets[str(line.get("set", "")), target] = found
    return rows, targets


def read_reasons(folder: Path, say: Say) -> dict[int, Reason]:
    """Returns row -> why it was chosen, as the last update that explained it says."""
    found: dict[int, Reason] = {}
    for line in read_lines(folder / WHY, say):
        row, step = whole(line.get("row")), whole(line.get("step"))
        if row is None or step is None:
            continue
        targets = [
            (str(each.get("set", "")), target, number(each.get("share")))
            for each in objects(line.get("targets"))
            if (target := whole(each.get("target"))) is not None
        ]
        is_weight = "weight" in line
        found[row] = Reason(
            step,
            whole(line.get("update")),
            str(line.get("component", "")),
            number(line.get("weight" if is_weight else "score")),
            is_weight,
            number(line.get("seconds")),
            tuple(targets[:3]),
        )
    return found


def read_last_scores(folder: Path, run: Any, say: Say) -> NDArray[np.float32] | None:
    """Returns (N,) the scores of the last update of a run, NaN for none; None where the record has none."""
    path = folder / LAST_SCORES
    if not path.exists():
        return None
    found = _of_run(path, run, say)
    scores = found.get("scores")
    if not found:
        return None
    if scores is None or scores.ndim != 1 or scores.dtype.kind != "f":
        say(f"{path.name} holds no scores: left out")
        return None
    return scores.astype(np.float32, copy=False)


def read_row_sources(folder: Path, run: Any, say: Say) -> NDArray[np.int64] | None:
    """Returns (N,) the place of each row's source; None where rows follow each other source by source."""
    path = folder / ROW_SOURCES
    if not path.exists():
        return None
    sources = _of_run(path, run, say).get("sources")
    return None if sources is None or sources.ndim != 1 else sources.astype(np.int64)


def _of_run(path: Path, run: Any, say: Say) -> dict[str, NDArray[Any]]:
    """Returns the arrays of an archive that says whose it is; none where that is another run."""
    found = read_arrays(path, say)
    if found and str(found.get("run")) != str(run):
        say(f"{path.name} is not of this run: left out")
        return {}
    return found


def read_arrays(path: Path, say: Say) -> dict[str, NDArray[Any]]:
    """Returns the arrays of an archive of NumPy; none where it cannot be read. Pickled objects are not."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        say(f"{path.name} cannot be read: {str(error).partition(chr(10))[0]}")
        return {}
