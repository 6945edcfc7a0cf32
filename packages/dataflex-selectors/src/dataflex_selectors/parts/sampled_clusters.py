"""Clusters of any number of rows: k-means over a sample of them, then each row goes to its nearest centre.

    c_k    = the mean of the sampled rows of cluster k, brought to length 1                    (spherical k-means)
    k(i)   = argmax_k x_i . c_k

Where k-means would take minutes over all rows, 64 for each cluster say as well where the centres are; to assign a row
takes one product with each centre. Vectors are read block by block and may stand in a file.

Letters: N rows, D features, C clusters, S rows of the sample, B rows of a block.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from dataflex.scoring.k_means import k_means
from dataflex.utils.progress import Progress
from numpy.typing import NDArray

SAMPLE = 64
"""Rows of the sample for each cluster."""

_CELLS = 2**24  # cosines at a time: 64 MB
_ROWS = 2**14  # rows at a time, whatever their vectors are read from


def default_clusters(rows: int) -> int:
    """Returns how many clusters take least time: as many as a cluster then has rows."""
    return max(1, math.isqrt(rows))


def sampled_rows(rows: int, clusters: int) -> int:
    """Returns how many rows k-means sees."""
    return min(rows, SAMPLE * clusters)


def clustered(
    vectors_ND: Any, size: int, clusters: int, generator: np.random.Generator, device: torch.device | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Returns the cluster of each row, and its cosine with the centre of that: (N,) twice.

    Args:
        vectors_ND: (N, D) float32 vectors of length 1, or what gives them for an array of row numbers.
        size: N, at least 1.
        clusters: How many are asked for, C; there may be fewer, and a number may have no row.
        generator: The source of randomness.
        device: Where cosines are computed; None for the CPU.
    """
    clusters = min(clusters, size)
    sample_S = np.arange(size, dtype=np.int64)
    if size > sampled_rows(size, clusters):
        sample_S = np.sort(generator.choice(size, sampled_rows(size, clusters), replace=False))
    vectors_SD = np.asarray(vectors_ND[sample_S], dtype=np.float32)
    label_S = k_means(vectors_SD, clusters, generator, device)[:, 0]
    centres_CD = torch.from_numpy(centres(vectors_SD, label_S)).to(device or "cpu")
    label_N, cosine_N = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.float32)
    step = min(_ROWS, max(1, _CELLS // max(len(centres_CD), centres_CD.shape[1])))
    with Progress(f"putting {size:,} rows into {len(centres_CD):,} clusters", size) as progress:
        for start in range(0, size, step):
            rows_B = np.arange(start, min(start + step, size), dtype=np.int64)
            vectors = torch.from_numpy(np.ascontiguousarray(vectors_ND[rows_B], dtype=np.float32)).to(device or "cpu")
            best = (vectors @ centres_CD.T).max(dim=1)
            label_N[rows_B], cosine_N[rows_B] = best.indices.cpu().numpy(), best.values.cpu().numpy()
            progress.done(len(rows_B))
    return label_N, cosine_N


def centres(vectors_SD: NDArray[np.float32], label_S: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns the mean of each cluster's rows, of length 1: (C, D); 0 where that is 0."""
    sums_CD = np.zeros((int(label_S.max()) + 1, vectors_SD.shape[1]))
    order = np.argsort(label_S, kind="stable")
    starts = np.flatnonzero(np.diff(label_S[order], prepend=-1))
    sums_CD[label_S[order][starts]] = np.add.reduceat(vectors_SD[order].astype(np.float64), starts, axis=0)
    length_C = np.linalg.norm(sums_CD, axis=1, keepdims=True)
    unit_CD = np.divide(sums_CD, length_C, out=np.zeros_like(sums_CD), where=length_C > 0)
    return np.asarray(unit_CD, dtype=np.float32)
