"""Vectors of rows that were made before: a .npy file with one for each row, read where they are needed.

The file is mapped into memory, not loaded: 10 million vectors of 768 numbers are 31 GB. Vectors are brought to length 1
when they are read; one of zeros stays, and is near to nothing.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from dataflex.core.errors import ComponentError, Problem, rows_named
from dataflex.core.numpy_files import load_array
from dataflex.rows.split_sources import SplitSources
from dataflex.rows.views import PlannedRows
from numpy.typing import NDArray

_ROWS = 2**14  # read at a time
_KINDS = "float16, float32 or float64"
_NUMBERS = "write numbers; a vector of zeros is near to no other"


def vectors_problem(key: str, file: Any, embedding: Any, default: str = "ngrams") -> Problem | None:
    """Returns a problem unless ``file`` is None or names a file of vectors, and no embedding is asked for beside it.

    The whole file is read, once as long as it stays as it is, so that a number that is none ends no training.

    Args:
        key: The parameter that names the file.
        file: Its value.
        embedding: The parameter ``embedding``.
        default: Its default, which is not looked at where there is a file.
    """
    if file is None:
        return None
    if not isinstance(file, str) or not file.strip():
        return Problem(key, f"found {file!r}, allowed: the name of a .npy file, or null")
    if embedding != default:
        what = f"found {file!r} beside embedding: {embedding}, and rows have one vector each"
        return Problem(key, what, "remove one of the two")
    try:
        found = _mapped(file)
    except FileNotFoundError:
        why = f"there is no such file (looked from {Path.cwd()})"
    except (OSError, ValueError, RuntimeError, EOFError) as error:  # RuntimeError: there is no such home directory
        why = str(error)
    else:
        if found.ndim == 2 and found.shape[1] and found.dtype.kind == "f":
            return _not_finite(key, file)
        why = f"it holds {found.dtype} of shape {found.shape}; needed: (rows, numbers) of {_KINDS}"
    return Problem(key, f"{file} cannot be read: {why}", "write it with numpy.save, a row for each row of the dataset")


class VectorFile:
    """The vectors of a dataset's rows.

    Args:
        key: The parameter that names the file, for messages.
        file: A file in which :func:`vectors_problem` finds nothing wrong.
        dataset: The dataset; behind a filter, a view of the one that the file is for. Where ``mixture_by`` has put its
            rows in the order of its sources, the file has them in the order that they were given in.
    """

    def __init__(self, key: str, file: str, dataset: Any) -> None:
        self._key, self._file, self._array = key, file, _mapped(file)
        self._rows: NDArray[np.int64] | None = None
        self._digest = ""
        sizes, part = [len(dataset)], dataset
        while len(part) != len(self._array) and isinstance(part, PlannedRows):
            self._rows = part.rows if self._rows is None else part.rows[self._rows]
            part = part.dataset
            sizes.append(len(part))
        if isinstance(part, SplitSources):
            self._rows = part.given if self._rows is None else part.given[self._rows]
        found = len(part) == len(self._array)
        what = f"{file} has {len(self._array)} vectors, for {' of '.join(map(str, sizes))} rows"
        way_out = "give one for each row of the tokenised train dataset, in its order; a mixture has no such order"
        self.problem = None if found else Problem(key, what, way_out)

    @property
    def width(self) -> int:
        """Numbers of a vector, D."""
        return int(self._array.shape[1])

    def __getitem__(self, rows_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the vectors of some rows of the dataset: (B, D) of length 1, or 0.

        Raises:
            ComponentError: One holds NaN or infinity.
        """
        rows_B = rows_B if self._rows is None else self._rows[rows_B]
        vectors_BD = np.asarray(self._array[rows_B], dtype=np.float64)
        wrong_B = ~np.isfinite(vectors_BD).all(axis=1)
        if wrong_B.any():
            raise ComponentError(  # the file was overwritten since it was checked
                f"{self._key}: {rows_named(rows_B[wrong_B])} of {self._file} holds NaN or infinity -> {_NUMBERS}"
            )
        length_B = np.linalg.norm(vectors_BD, axis=1, keepdims=True)
        unit_BD = np.divide(vectors_BD, length_B, out=np.zeros_like(vectors_BD), where=length_B > 0)
        return np.asarray(unit_BD, dtype=np.float32)

    def digest(self) -> str:
        """Returns what two files share only if they hold the same numbers. Reads the file the first time."""
        if not self._digest:
            state = hashlib.blake2b(f"{self._array.shape} {self._array.dtype}".encode(), digest_size=8)
            for start in range(0, len(self._array), _ROWS):
                state.update(np.ascontiguousarray(self._array[start : start + _ROWS]).tobytes())
            self._digest = state.hexdigest()
        return self._digest


def _mapped(file: str) -> NDArray[Any]:
    return load_array(Path(file).expanduser(), mmap_mode="r")


def _not_finite(key: str, file: str) -> Problem | None:
    """Returns a problem if a vector holds NaN or infinity."""
    state = Path(file).expanduser().stat()
    wrong = _wrong_rows(file, state.st_mtime_ns, state.st_size)
    if not len(wrong):
        return None
    return Problem(key, f"{rows_named(wrong)} of {file} holds NaN or infinity", _NUMBERS)


@lru_cache(maxsize=8)
def _wrong_rows(file: str, _changed: int, _size: int) -> NDArray[np.int64]:
    """Returns the rows that hold NaN or infinity. Kept as long as the file is of the same time and size."""
    array = _mapped(file)
    wrong: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(array), _ROWS):  # no progress: a check of parameters is made without the logger
        finite = np.isfinite(array[start : start + _ROWS]).all(axis=1)
        wrong.append((start + np.flatnonzero(~finite)).astype(np.int64))
    return np.concatenate(wrong)
