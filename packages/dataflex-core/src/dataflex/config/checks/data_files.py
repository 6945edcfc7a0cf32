"""Reading small local data files as far as that is quick, in the way that LLaMA-Factory reads them.

A file is refused here only where reading it for training would end in an error. What the standard library cannot tell
(Arrow, Parquet beyond its magic bytes, compressed files, large files) is left to the time when the data are read.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dataflex.core.errors import ConfigError

LARGEST = 16 * 2**20  # bytes read; a bigger file is taken as it is, so that `validate` stays under a second
FILE_TYPES = {"arrow": "arrow", "csv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet", "txt": "text"}
"""Extension -> the format that LLaMA-Factory reads it as; all files of a folder must have one format."""

_PARQUET = (b"PAR1", b"PARE")  # the second is encrypted
_COMPRESSED = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"7z\xbc\xaf")
_FIELD = 2**31 - 1  # bytes of a field of a CSV file: no limit, as in pandas
_BLANK = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Table:
    """What a data file holds.

    Attributes:
        path: The file.
        count: Its rows; None where that is not known.
        columns: The columns that any of its rows has; None where they are not known.
        rows: The rows, where their values can be looked at.
        one_object: Whether it is a single JSON object and no list.
    """

    path: Path
    count: int | None = None
    columns: frozenset[str] | None = None
    rows: tuple[Mapping[str, Any], ...] = ()
    one_object: bool = False


def data_files(path: Path, name: str) -> list[Path]:
    """Returns the files that ``file_name`` means: the file itself, or all that a folder holds.

    Args:
        path: The file or folder.
        name: The dataset, for messages.

    Raises:
        ConfigError: It does not exist, or holds what LLaMA-Factory cannot read beside the rest.
    """
    if path.is_file():
        _require_known(path)
        return [path]
    if not path.exists():
        raise ConfigError(f"the file of '{name}' does not exist: {path} -> repair file_name in dataset_info.json")
    if not path.is_dir():
        raise ConfigError(f"'{name}': {path} is neither a file nor a folder -> name a data file")
    files = sorted(path.iterdir())
    if not files:
        raise ConfigError(f"'{name}': the folder {path} is empty -> put data files into it")
    for file in files:
        if not file.is_file():
            raise ConfigError(f"'{name}': the folder {path} holds the folder {file.name} -> name that one")
        if not file.suffix:
            what = f"'{name}': the folder {path} holds {file.name}, which is no data file, and all files are read"
            raise ConfigError(f"{what} -> remove it")
        _require_known(file)
    kinds = {FILE_TYPES[file.suffix[1:]]: file.name for file in files}
    if len(kinds) > 1:
        shown = " and ".join(sorted(kinds.values()))
        raise ConfigError(f"'{name}': the folder {path} holds files of several types ({shown}) -> keep one type")
    return files


def read_table(path: Path, limit: int = LARGEST) -> Table:
    """Returns what a data file holds, as far as that is quick.

    Args:
        path: A file of a known type.
        limit: Bytes of the largest file that is read.

    Raises:
        ConfigError: The file cannot be read for training either.
    """
    kind = FILE_TYPES[path.suffix[1:]]
    try:
        size = path.stat().st_size
        if size == 0:
            return Table(path, 0)
        with path.open("rb") as file:
            head = file.read(8)
        if kind == "parquet":
            _require_parquet(path, head, size)
        if kind in ("arrow", "parquet") or size > limit or head.startswith(_COMPRESSED):
            return Table(path)
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8 -> save the file as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror} -> see to its permissions") from error
    return {"json": _json, "csv": _csv, "text": _text}[kind](path, text)


def shown(value: Any) -> str:
    """Returns a value in the words of JSON, cut to a line."""
    if value is None:
        return "null"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _require_known(path: Path) -> None:
    suffix = path.suffix.lstrip(".")
    if suffix not in FILE_TYPES:
        hint = f" -> rename it to .{suffix.lower()}" if suffix.lower() in FILE_TYPES else " -> convert it"
        allowed = ", ".join(FILE_TYPES)
        raise ConfigError(f"{path}: file type '{suffix}' cannot be read; allowed: {allowed}{hint}")


def _require_parquet(path: Path, head: bytes, size: int) -> None:
    with path.open("rb") as file:
        file.seek(max(0, size - 4))
        tail = file.read(4)
    if head[:4] not in _PARQUET or tail not in _PARQUET:
        where = "start" if head[:4] not in _PARQUET else "end"
        raise ConfigError(f"{path}: this is no Parquet file, its {where} lacks the bytes PAR1 -> copy it again")


def _json(path: Path, text: str) -> Table:
    try:
        found = _values(text)
    except json.JSONDecodeError as error:
        way_out = "copy it again, its end is missing" if error.pos >= len(text.rstrip()) else "repair the file"
        raise ConfigError(f"{path}, line {error.lineno}: malformed JSON: {error.msg} -> {way_out}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: its JSON is nested too deeply -> flatten its rows") from error
    rows, listed = found
    if listed and rows and all(isinstance(row, str) for row in rows):
        return Table(path, len(rows), frozenset({"text"}), tuple({"text": row} for row in rows))
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            where = f"row {number} is {shown(row)}" if listed or number > 1 else f"holds {shown(row)}"
            raise ConfigError(f"{path}: {where} in place of an object -> write a list of rows like {{column: value}}")
    columns = frozenset().union(*rows)
    return Table(path, len(rows), columns, tuple(rows), one_object=len(rows) == 1 and not listed)


def _values(text: str) -> tuple[list[Any], bool]:
    """Returns the rows of a list, or the values that follow each other (JSON lines), and whether it was a list."""
    position = _after_blanks(text, 0)
    if text.startswith("[", position):
        return json.loads(text), True
    values, decoder = [], json.JSONDecoder()
    while position < len(text):
        value, position = decoder.raw_decode(text, position)
        values.append(value)
        position = _after_blanks(text, position)
    return values, False


def _after_blanks(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    assert match is not None, "it may be empty"
    return match.end()


def _csv(path: Path, text: str) -> Table:
    before = csv.field_size_limit(_FIELD)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error:
        return Table(path)  # pandas reads some of what this reader does not
    finally:
        csv.field_size_limit(before)
    if not rows:
        return Table(path, 0)
    header, first = rows[0], rows[1] if len(rows) > 1 else []
    width = max(len(header), len(first))
    for number, row in enumerate(islice(rows, 2, None), start=2):
        if len(row) > width:
            what = f"{path}, row {number}: found {len(row)} fields where the header has {len(header)}"
            raise ConfigError(f"{what} -> put quotes around a field that holds a comma")
    return Table(path, None if first else 0, frozenset(header))


def _text(path: Path, text: str) -> Table:
    count = text.count("\n") + (not text.endswith("\n"))
    return Table(path, count if text.strip() else 0, frozenset({"text"}))
