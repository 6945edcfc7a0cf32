"""A short digest of the numbers of a decision: by it ranks, a checkpoint and the record compare what was decided."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def decision_hash(decision: NDArray[Any]) -> str:
    """Returns 16 hexadecimal digits that two decisions share only if they are equal, number for number, in order."""
    return hashlib.blake2b(np.ascontiguousarray(decision).tobytes(), digest_size=8).hexdigest()
