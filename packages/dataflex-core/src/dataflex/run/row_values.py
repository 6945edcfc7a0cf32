"""Files with a number for each row of the train dataset, and the one reader of them.

Scores, weights and irreducible losses come in such files: ``.parquet``, ``.npz`` or ``.npy``. Which row a number is for
is not left to chance:

* A column (or array) ``row`` says it. The numbers are put in order; every row must be there, and once.
* Without it the numbers are those of the rows in their order, and there must be as many.
* What ``dataflex-cli score`` wrote holds a digest of the rows that it scored. It must be that of the train dataset,
  with ``row`` and without: the same row number means another row after another split.
* A file without a digest is somebody's own. It is taken on trust, and a log line says so.
"""

from __future__ import annotations

import hashlib
import json
import os
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

from dataflex.core.decision import decision_hash
from dataflex.core.errors import CheckpointError, Problem, listed, rows_named
from dataflex.data.digest import rows_digest
from dataflex.utils.logging import logger

METADATA = b"dataflex"
DIGEST = "rows_digest"
VALUES_DIGEST = "values_digest"  # column -> digest of its numbers; a column that somebody added has none
ROW = "row"
_NUMBERS = 2**22  # digested at a time
SUFFIXES = (".npy", ".npz", ".parquet")
_SHAPING = "dataset, max_samples, val_size and the seed that splits it, template, tokenizer, cutoff_len, packing"
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


def row_values(key: str, file: str, name: str, dataset: Any, sole: bool = False) -> NDArray[np.float64] | Problem:
    """Returns the numbers of a file in the order of the train dataset's rows, or why they cannot be taken.

    Every rank calls it, reads the file itself and comes to the same end; it makes no collective call.

    Args:
        key: The parameter that names the file, for the problem.
        file: The file; ``~`` is the home directory.
        name: See :func:`read_row_file`.
        dataset: The train dataset, tokenised, with a length.
        sole: See :func:`read_row_file`.

    Returns:
        (N,) float64, NaN for null.
    """
    try:
        found = read_row_file(Path(os.path.expanduser(file)), name, sole)
    except (OSError, ValueError) as error:
        return Problem(key, f"{file} cannot be read: {error}", "give a file of dataflex-cli score, or one like it")
    problem = _of_another_dataset(key, file, found, dataset) or _misplaced(key, file, found, len(dataset))
    if problem is not None:
        return problem
    if DIGEST not in found.about:
        how = "by its column row" if found.rows is not None else "in its order"
        logger.warning("%s does not say which dataset it is for: its numbers are taken on trust, %s", file, how)
    if found.rows is None:
        return found.values
    placed_N = np.empty_like(found.values)
    placed_N[found.rows] = found.values
    return placed_N


def _numpy(path: Path, name: str, sole: bool) -> _Found:
    with open(path, "rb") as file:  # np.load leaves it open where it is no archive
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found, None, {}, name
        wanted = _column(name, found.files, sole)
        return found[wanted], found[ROW] if ROW in found.files else None, {}, wanted


def _parquet(path: Path, name: str, sole: bool) -> _Found:
    schema = pq.read_schema(path)
    wanted, numbered = _column(name, schema.names, sole), ROW in schema.names
    table = pq.read_table(path, columns=[wanted, ROW] if numbered else [wanted])
    about = json.loads((schema.metadata or {}).get(METADATA, b"{}"))
    return table.column(wanted).to_numpy(), table.column(ROW).to_numpy() if numbered else None, about, wanted


def require_same_numbers(saved: str, values_N: NDArray[Any], file: str | None) -> None:
    """Refuses to go on from a checkpoint with other numbers than those that the run began with.

    Args:
        saved: The :func:`~dataflex.core.decision.decision_hash` of the numbers that the checkpoint holds.
        values_N: (N,) the numbers that were read now.
        file: The file that they come from; None for a column of the dataset.

    Raises:
        CheckpointError: They differ.
    """
    if saved != decision_hash(values_N):
        raise CheckpointError(
            f"{file or 'the column of the train dataset'} holds other numbers than when the checkpoint was written -> "
            "put back those, or begin a run of its own in another output_dir"
        )


def _column(name: str, names: Sequence[str], sole: bool) -> str:
    others = [other for other in names if other != ROW]
    if name in names:
        return name
    if sole and len(others) == 1:
        return others[0]
    only = ", or a single one" if sole else ""
    raise ValueError(f"it has no column {name!r} but {listed(others)}; needed: {name}{only}")


def _of_another_dataset(key: str, file: str, found: RowFile, dataset: Any) -> Problem | None:
    """Returns a problem where the file says that it is for other rows."""
    theirs = found.about.get(DIGEST)
    if theirs is None:
        return None
    ours = rows_digest(dataset)
    if theirs == ours:
        return None
    made = ", ".join(f"{key} {found.about[key]}" for key in ("component", "step", "seed") if key in found.about)
    what = (
        f"{file} is for other rows: it has {found.about.get('rows', len(found.values))} rows with the digest {theirs}"
        f"{f' ({made})' if made else ''}, the train dataset {len(dataset)} with the digest {ours}"
    )
    way_out = f"make what shapes rows the same ({_SHAPING}), or run dataflex-cli score again with this configuration"
    return Problem(key, what, way_out)


def _misplaced(key: str, file: str, found: RowFile, size: int) -> Problem | None:
    """Returns a problem unless there is one number for each row."""
    count, rows = len(found.values), found.rows
    if rows is None:
        if count == size:
            return None
        what = f"{file} has {count} numbers and no column {ROW}, for {size} rows of the train dataset"
        return Problem(key, what, f"give one per row of the tokenised train dataset, or a column {ROW} with its number")
    if rows.shape != (count,) or rows.dtype.kind not in "iu":
        what = f"the column {ROW} of {file} holds {rows.dtype} of shape {rows.shape}"
        return Problem(key, what, "give the number of a row, from 0, for each of its numbers")
    outside = rows[(rows < 0) | (rows >= size)]
    if len(outside):
        what = f"{file} has numbers for {rows_named(outside)}, outside of the train dataset, whose rows are 0 to"
        return Problem(key, f"{what} {size - 1}", "make it from this dataset, or leave them out")
    times = np.bincount(rows.astype(np.int64), minlength=size)
    if (times > 1).any():
        what = f"{file} has more than one number for {rows_named(np.flatnonzero(times > 1))}"
        return Problem(key, what, "leave one for each row")
    if (times == 0).any():
        what = f"{file} has no number for {rows_named(np.flatnonzero(times == 0))} of the {size} of the train dataset"
        return Problem(key, what, "add them, with null where a row has none")
    return None
