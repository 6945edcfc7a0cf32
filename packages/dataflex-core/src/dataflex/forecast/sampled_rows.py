"""Rows of local data files, spread evenly over each, and how many there are: read as far as that takes a moment.

Small files are read whole, by :mod:`dataflex.config.checks.data_files`. Of large ones some lines are read, and the
number of rows is that of the bytes by the bytes of a row; Parquet and Arrow say it themselves.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from dataflex.config.checks.data_files import FILE_TYPES, LARGEST, read_table

SAMPLE = 200
"""Rows of a source that are looked at."""
_PLACES = 40  # of a large file that lines are read at
_HEAD = 4 * 2**20  # bytes of a large file without lines of its own that are read


@dataclass(frozen=True)
class Sampled:
    """Rows of data files.

    Attributes:
        rows: Some of them.
        count: How many there are; None where that is not known.
        exact: Whether that is counted, and not estimated from bytes.
    """

    rows: tuple[Mapping[str, Any], ...] = ()
    count: float | None = None
    exact: bool = True


def sampled(files: Sequence[Path], most: int = SAMPLE) -> Sampled:
    """Returns up to ``most`` rows of files together, from each in proportion to its bytes."""
    sizes = np.array([max(1, path.stat().st_size) for path in files], dtype=np.float64)
    wanted = np.maximum(1, np.round(most * sizes / sizes.sum())).astype(int)
    found = [_of_file(path, int(count)) for path, count in zip(files, wanted, strict=True)]
    counts = [each.count for each in found if each.count is not None]
    return Sampled(
        tuple(row for each in found for row in each.rows),
        sum(counts) if len(counts) == len(found) else None,
        all(each.exact for each in found),
    )


def _of_file(path: Path, most: int) -> Sampled:
    kind, size = FILE_TYPES[path.suffix[1:]], path.stat().st_size
    if kind in ("parquet", "arrow"):
        return _columns(path, kind, most)
    if kind == "csv":
        return _csv(path, size, most)
    if size <= LARGEST:
        table = read_table(path)
        rows = table.rows
        if kind == "text" and table.count is not None:  # else it is compressed
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            rows = tuple({"text": line} for line in lines)
        return Sampled(_spread(rows, most), table.count)
    with path.open("rb") as file:
        first = file.read(1)
    if kind == "json" and first == b"[":
        return _json_list(path, size, most)
    return _lines(path, kind, size, most)


def _spread(rows: Sequence[Mapping[str, Any]], most: int) -> tuple[Mapping[str, Any], ...]:
    if len(rows) <= most:
        return tuple(rows)
    return tuple(rows[place] for place in np.linspace(0, len(rows) - 1, most).astype(int))


def _columns(path: Path, kind: str, most: int) -> Sampled:
    """Reads Parquet and Arrow, whose files know how many rows they have."""
    try:
        if kind == "parquet":
            file = pq.ParquetFile(path)
            groups = np.unique(np.linspace(0, file.num_row_groups - 1, 4).astype(int)) if file.num_row_groups else ()
            each = max(1, most // max(1, len(groups)))
            rows: list[Mapping[str, Any]] = []
            for group in groups:
                batch = next(file.iter_batches(each, row_groups=[int(group)]), None)
                rows += [] if batch is None else batch.to_pylist()
            return Sampled(tuple(rows), file.metadata.num_rows)
        with pa.memory_map(str(path)) as source:
            try:
                table = pa.ipc.open_stream(source).read_all()
            except pa.ArrowInvalid:
                table = pa.ipc.open_file(source).read_all()
            places = np.unique(np.linspace(0, max(0, table.num_rows - 1), most).astype(int))
            return Sampled(tuple(table.take(places).to_pylist()) if table.num_rows else (), table.num_rows)
    except (pa.ArrowException, OSError):
        return Sampled()


def _csv(path: Path, size: int, most: int) -> Sampled:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    try:
        text = head.decode("utf-8-sig", errors="strict" if len(head) == size else "ignore")
        rows = [row for row in csv.DictReader(io.StringIO(text, newline="")) if any(row.values())]
    except (UnicodeDecodeError, csv.Error):
        return Sampled()
    if len(head) == size:
        return Sampled(_spread(rows, most), len(rows))
    return Sampled(_spread(rows[:-1], most), len(rows) * size / len(head), exact=False)


def _json_list(path: Path, size: int, most: int) -> Sampled:
    """Reads the objects at the head of a long list."""
    with path.open("rb") as file:
        text = file.read(_HEAD).decode("utf-8", errors="ignore")
    decoder, rows, place = json.JSONDecoder(), [], 1
    while True:
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1
        try:
            row, place = decoder.raw_decode(text, place)
        except ValueError:
            break
        if isinstance(row, dict):
            rows.append(row)
    read = len(text[:place].encode())
    return Sampled(_spread(rows, most), len(rows) * size / read, exact=False) if rows else Sampled()


def _lines(path: Path, kind: str, size: int, most: int) -> Sampled:
    """Reads lines at places spread over the file."""
    rows: list[Mapping[str, Any]] = []
    read = 0
    with path.open("rb") as file:
        for place in np.linspace(0, size * (1 - 1 / _PLACES), _PLACES).astype(int):
            file.seek(int(place))
            if place:
                file.readline()  # the rest of a line
            for _ in range(max(1, most // _PLACES)):
                line = file.readline()
                row = _row(line, kind)
                if row is not None:
                    rows.append(row)
                    read += len(line)
    return Sampled(tuple(rows), len(rows) * size / read, exact=False) if rows else Sampled()


def _row(line: bytes, kind: str) -> Mapping[str, Any] | None:
    if kind == "text":
        return {"text": line.decode("utf-8", errors="ignore").rstrip("\n")} if line.strip() else None
    try:
        found = json.loads(line)
    except ValueError:  # a list over several lines, or a compressed file
        return None
    return found if isinstance(found, dict) else None
