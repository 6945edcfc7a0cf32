"""The files that hold a number for each row, as they stand on disk: see :mod:`dataflex.run.row_values`.

Nothing here needs the dataset or torch, so that ``validate`` reads them too.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from numpy.typing import NDArray

from dataflex.core.errors import Problem, listed
from dataflex.core.numpy_files import load_numpy

METADATA = b"dataflex"
DIGEST = "rows_digest"
VALUES_DIGEST = "values_digest"  # column -> digest of its numbers; a column that somebody added has none
ROW = "row"
_NUMBERS = 2**22  # digested at a time
SUFFIXES = (".npy", ".npz", ".parquet")
# What reading bytes of another kind raises besides OSError and ValueError: NumPy takes the header of an old .npy apart
# as Python tokens, and a size of it that is wrong asks for any amount of memory.
_UNREADABLE = (
    pa.ArrowException,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    SyntaxError,
    EOFError,
    LookupError,
    RuntimeError,
    MemoryError,
)


_Found = tuple[NDArray[Any], NDArray[Any] | None, Any, str]  # numbers, rows, metadata, and the column


@dataclass(frozen=True)
class RowFile:
    """What a file holds, as it stands there.

    Attributes:
        values: (n,) the numbers, NaN for null.
        rows: (n,) the rows that they are for, or None where the file does not say.
        about: What the file says of itself: its metadata, as ``dataflex-cli score`` writes it; empty elsewhere.
    """

    values: NDArray[np.float64]
    rows: NDArray[Any] | None
    about: Mapping[str, Any]

    def rows_where(self, wanted: NDArray[np.bool_]) -> NDArray[Any]:
        """Returns the numbers of the rows whose value is wanted; their places where the file does not say."""
        places = np.flatnonzero(wanted)
        return places if self.rows is None or self.rows.shape != self.values.shape else self.rows[places]


def read_row_file(path: Path, name: str, sole: bool = False) -> RowFile:
    """Returns the contents of a file of numbers.

    Args:
        path: A .npy, .npz or .parquet file.
        name: The column of a .parquet or the array of an .npz.
        sole: Whether an only column or array, ``row`` aside, may have another name.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is none of the three kinds, or holds something else than a number for each row.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"it ends in {path.suffix!r}; allowed: {', '.join(SUFFIXES)}")
    if path.exists() and not path.is_file():  # a pipe would keep every rank waiting
        raise ValueError("it is no file")
    try:
        found = _parquet(path, name, sole) if path.suffix == ".parquet" else _numpy(path, name, sole)
    except _UNREADABLE as error:
        raise ValueError(str(error) or type(error).__name__) from error
    values, rows, about, column = found
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        raise ValueError(f"it holds {values.dtype} of shape {values.shape}; needed: a number for each row")
    if not isinstance(about, Mapping):
        raise ValueError(f"its metadata {METADATA.decode()!r} is no JSON object")
    digests = about.get(VALUES_DIGEST, {})
    if not isinstance(digests, Mapping):
        raise ValueError(f"its metadata {METADATA.decode()!r} has no digest by column in {VALUES_DIGEST!r}")
    if column in digests and digests[column] != values_digest(values):
        raise ValueError(
            f"its numbers of {column!r} are not those that were written: it is damaged, or it was changed, and then "
            f"must lose its metadata {METADATA.decode()!r}"
        )
    return RowFile(values.astype(np.float64), rows, about)


def values_digest(values: NDArray[Any]) -> str:
    """Returns a digest of numbers, one for each row: a flipped bit in a file is another number, and nothing else."""
    state = hashlib.blake2b(digest_size=8)
    for start in range(0, len(values), _NUMBERS):
        plain = values[start : start + _NUMBERS].astype(np.float64)
        state.update(np.where(np.isnan(plain), np.nan, plain).tobytes())
    return state.hexdigest()


def read_rows(key: str, file: Any, name: str, sole: bool = False) -> RowFile | Problem:
    """Returns the contents of the file that a parameter names, or why it cannot be read.

    Args:
        key: The parameter.
        file: Its value: a file; ``~`` is the home directory.
        name: See :func:`read_row_file`.
        sole: See :func:`read_row_file`.
    """
    if not isinstance(file, str) or not file.strip():
        return Problem(key, f"found {file!r}, allowed: the name of a file")
    try:
        return read_row_file(Path(file).expanduser(), name, sole)
    except FileNotFoundError:
        why = f"there is no such file (looked from {Path.cwd()})"
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: there is no such home directory
        why = str(error)
    return Problem(key, f"{file} cannot be read: {why}", "give a file of dataflex-cli score, or one like it")


def _numpy(path: Path, name: str, sole: bool) -> _Found:
    found = load_numpy(path)
    if isinstance(found, np.ndarray):
        return found, None, {}, name
    with found:
        wanted = _column(name, found.files, sole)
        return found[wanted], found[ROW] if ROW in found.files else None, {}, wanted


def _parquet(path: Path, name: str, sole: bool) -> _Found:
    schema = pq.read_schema(path)
    wanted, numbered = _column(name, schema.names, sole), ROW in schema.names
    table = pq.read_table(path, columns=[wanted, ROW] if numbered else [wanted])
    about = json.loads((schema.metadata or {}).get(METADATA, b"{}"))
    return table.column(wanted).to_numpy(), table.column(ROW).to_numpy() if numbered else None, about, wanted


def _column(name: str, names: Sequence[str], sole: bool) -> str:
    others = [other for other in names if other != ROW]
    if name in names:
        return name
    if sole and len(others) == 1:
        return others[0]
    only = ", or a single one" if sole else ""
    raise ValueError(f"it has no column {name!r} but {listed(others)}; needed: {name}{only}")
