"""Files of ``numpy.save`` and ``numpy.savez`` that users wrote."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

_ARRAY, _ARCHIVE = b"\x93NUMPY", b"PK"
_BEGIN = (_ARRAY, _ARCHIVE)
_LONGEST = max(map(len, _BEGIN))


def load_numpy(path: Path, mmap_mode: Literal["r"] | None = None) -> Any:
    """Returns what ``numpy.load`` returns: an array, or an archive. No pickled objects.

    Args:
        path: The file.
        mmap_mode: ``r`` to map an array into memory.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no such file, is broken, or holds objects. NumPy would advise to load them unsafely.
    """
    with open(path, "rb") as file:
        begins = file.read(_LONGEST)
    if not begins.startswith(_BEGIN):
        raise ValueError("it is no file that numpy.save wrote")
    if begins.startswith(_ARCHIVE):
        _require_whole(path)
    try:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except ValueError as error:
        if "allow_pickle" not in str(error) and "Python objects" not in str(error):
            raise
        raise ValueError("it holds Python objects, not numbers or texts") from error


def _require_whole(path: Path) -> None:
    """Looks at the archive first: NumPy leaves a broken one open."""
    try:
        zipfile.ZipFile(path).close()
    except zipfile.BadZipFile as error:
        raise ValueError(f"it is a broken archive ({error})") from error


def load_array(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """As :func:`load_numpy`, for a file that must hold a single array."""
    found = load_numpy(path, mmap_mode)
    if isinstance(found, np.ndarray):
        return found
    found.close()
    raise ValueError("it is no .npy file but an archive")
