"""The nearest rows by Euclidean distance: exact, in chunks, the same on every run.

For each query the pool is gone through in blocks; distances of a block come from one matrix product, and the best k so
far are merged with those of the block. Memory is that of a block, not M x N.

Ties are broken by row number, and duplicates do tie: products are taken in float64 and distances rounded to float32, so
the last bits, which depend on where in a block a row stands, are removed. Distance and row number are packed into one
integer for the selection, because a selection of floats does not define which of two equal ones is taken.

Rejected: an inverted-file index, which is faster and returns -1 where the lists that it visits hold fewer than k rows.

Letters: M queries, N rows of the pool, D features, K neighbours.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from dataflex.core.errors import Problem
from dataflex.core.parameter_checks import one_of
from dataflex.utils.progress import Progress
from numpy.typing import NDArray

Search = Callable[[int, int, int], tuple[NDArray[np.float64], NDArray[np.int64]]]
"""``search(first, last, k) -> (distances_QK, ids_QK)``: the k nearest rows of the queries from first to before last."""

BACKENDS = ("torch", "faiss")
FLOAT64 = ("cpu", "cuda")
"""Devices that are known to compute in float64 as IEEE has it; on others the CPU computes."""
_QUERIES = 256  # queries at a time
_BLOCK = 16384  # rows of the pool at a time: with the queries above, 100 MB of work space
_WHO = "searching for the nearest rows"
_ROW_BITS = 32  # of the packed integer; the others hold the distance


def backend_problem(backend: Any) -> Problem | None:
    """Returns a problem unless ``backend`` is known and installed."""
    problem = one_of("backend", backend, BACKENDS)
    if problem is None and backend == "faiss" and find_spec("faiss") is None:
        return Problem(
            "backend", "faiss is not installed", 'pip install "dataflex-selectors[faiss]", or use backend: torch'
        )
    return problem


def nearest(
    queries_MD: NDArray[np.float32],
    pool_ND: NDArray[np.float32],
    k: int,
    *,
    backend: str = "torch",
    device: torch.device | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns the distances of each query's nearest rows, ascending, and their numbers: (M, K) twice.

    Makes no collective call; on equal devices every rank gets the same.

    Args:
        queries_MD: (M, D) finite features of the queries.
        pool_ND: (N, D) finite features of the pool, N >= 1.
        k: How many neighbours; K is at most N.
        backend: ``torch``, or ``faiss`` on the CPU, where distances are computed in float32 and rows with nearly equal
            distances may change places.
        device: Where torch computes; None for the CPU.
    """
    k = min(k, len(pool_ND))
    if backend == "faiss":
        return _by_faiss(queries_MD, pool_ND, k)
    if device is None or device.type not in FLOAT64:
        device = torch.device("cpu")
    parts = []
    with Progress(_WHO, len(queries_MD), "queries") as progress:
        for part in np.split(queries_MD, _cuts(len(queries_MD))):
            parts.append(_packed_nearest(part, pool_ND, k, device))
            progress.done(len(part))
    return _unpacked(torch.cat(parts))


def _cuts(count: int) -> list[int]:
    return list(range(_QUERIES, count, _QUERIES))


def _packed_nearest(
    queries_QD: NDArray[np.float32], pool_ND: NDArray[np.float32], k: int, device: torch.device
) -> torch.Tensor:
    queries = torch.from_numpy(queries_QD).to(device, torch.float64)
    best_QK = torch.empty((len(queries), 0), dtype=torch.int64, device=device)
    for start in range(0, len(pool_ND), _BLOCK):
        block = torch.from_numpy(pool_ND[start : start + _BLOCK]).to(device, torch.float64)
        squares = queries.square().sum(1, keepdim=True) + block.square().sum(1) - 2 * queries @ block.T
        squares = squares.clamp(min=0).float() + 0.0  # -0.0 would have the sign bit set
        rows = torch.arange(start, start + len(block), device=device)
        packed = (squares.view(torch.int32).long() << _ROW_BITS) | rows  # floats >= 0 are ordered as their bits are
        merged = torch.cat([best_QK, packed], dim=1)
        best_QK = merged.topk(min(k, merged.shape[1]), dim=1, largest=False).values
    return best_QK.cpu()


def _unpacked(packed_MK: torch.Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    squares = (packed_MK >> _ROW_BITS).int().view(torch.float32)
    return squares.double().sqrt().numpy(), (packed_MK & (2**_ROW_BITS - 1)).numpy()


def _by_faiss(
    queries_MD: NDArray[np.float32], pool_ND: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    faiss = importlib.import_module("faiss")
    index = faiss.IndexFlatL2(pool_ND.shape[1])  # goes through all rows: it has k for every query
    index.add(np.ascontiguousarray(pool_ND))
    with Progress(_WHO, len(queries_MD), "queries", bar=None):
        squares, ids = index.search(np.ascontiguousarray(queries_MD), k)
    assert ids.min() >= 0, "a flat index has a neighbour for every place"
    squares = np.maximum(squares, 0)
    order = np.lexsort((ids, squares), axis=1)
    distances = np.sqrt(np.take_along_axis(squares, order, axis=1).astype(np.float64))
    return distances, np.take_along_axis(ids, order, axis=1).astype(np.int64)
