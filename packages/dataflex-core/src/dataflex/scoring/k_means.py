"""k-means: rows whose vectors are near each other, in groups.

    centres: the first row at random, each next one the best of a few drawn with probability proportional to
             their squared distance to the nearest centre so far (k-means++, Arthur and Vassilvitskii 2007)
    repeat:  each row goes to its nearest centre; each centre becomes the mean of its rows             (Lloyd)

Distances are taken in blocks of rows, so memory is that of the vectors: on the device where they take no more than a
share of its memory, else on the CPU. Sums are in float64 on the CPU, as not every device has it. The generator alone
decides: the same vectors and the same generator give the same clusters. A centre that loses all of its rows takes the
row that is farthest from its own centre. One process computes; whoever asks hands the result to the other ranks.

Letters: N rows, B of a block, D features, C clusters.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.scoring.passes.budget import device_memory
from dataflex.utils.progress import Progress

ITERATIONS = 20
"""Most rounds of Lloyd's; later rounds change too little to be worth a pass over all rows."""

_CELLS = 2**24  # distances at a time: 64 MB
_NUMBERS = 2**26  # of vectors that are squared at a time: 256 MB
_ROWS = 2**14  # rows that are added up at a time
_DEVICE_SHARE = 8  # the model being trained has the rest of the device's memory


def k_means(
    vectors_ND: NDArray[np.float32],
    count: int,
    generator: np.random.Generator,
    device: torch.device | None = None,
    iterations: int = ITERATIONS,
) -> NDArray[np.int64]:
    """Returns the numbers of the nearest and the second nearest cluster of each row: (N, 2), or (N, 1) for one cluster.

    Every number from 0 up to the largest is some row's nearest. There are fewer clusters than asked for where there are
    fewer different rows.

    Args:
        vectors_ND: (N, D) finite vectors, N >= 1.
        count: How many clusters, C >= 1.
        generator: The source of randomness.
        device: Where to compute, if the vectors take no more than an eighth of its memory; None for the CPU.
        iterations: Most rounds.
    """
    on_cpu_ND = torch.from_numpy(np.ascontiguousarray(vectors_ND)).float()
    vectors = on_cpu_ND.to(device) if device is not None and _fits(on_cpu_ND, device) else on_cpu_ND
    centres_CD = vectors[_spread_out(vectors, min(count, len(vectors)), generator)].clone()
    nearest_NK = _nearest(vectors, centres_CD)
    with Progress(f"clustering {len(vectors):,} rows", unit="rounds") as progress:  # few rounds may be enough
        for _ in range(iterations):
            centres_CD = _means(on_cpu_ND, nearest_NK[:, 0], centres_CD)
            before_N = nearest_NK[:, 0]
            nearest_NK = _nearest(vectors, centres_CD)
            progress.done()
            if torch.equal(nearest_NK[:, 0], before_N):
                break
    return _without_empty(vectors, nearest_NK, centres_CD)


def _fits(vectors_ND: torch.Tensor, device: torch.device) -> bool:
    return device.type == "cpu" or vectors_ND.nbytes <= device_memory(device) // _DEVICE_SHARE


def tries(count: int) -> int:
    """Returns how many rows are drawn for each of ``count`` first centres."""
    return 2 + int(np.log(count))


def _spread_out(vectors: torch.Tensor, count: int, generator: np.random.Generator) -> list[int]:
    """Returns the rows that k-means++ begins with; fewer than ``count`` where there are no other rows left.

    Of a few draws, the one that brings all rows nearest to a centre is taken (the greedy form), which seldom puts two
    centres into one group.
    """
    each = tries(count)
    chosen = [int(generator.integers(len(vectors)))]
    squares_N = _all_squares(vectors, vectors[chosen])[:, 0]
    with Progress(f"clustering {len(vectors):,} rows, where to begin", count, "centres") as progress:
        while len(chosen) < count:
            total_N = squares_N.cpu().double().cumsum(0)
            if float(total_N[-1]) <= 0:
                break
            at = torch.from_numpy(generator.random(each)) * total_N[-1]
            drawn = torch.searchsorted(total_N, at, right=True).clamp(max=len(vectors) - 1)
            after_NT = torch.minimum(squares_N.unsqueeze(1), _all_squares(vectors, vectors[drawn.to(vectors.device)]))
            sums = torch.stack([part.sum(0) for part in torch.split(after_NT, _ROWS)])
            best = int(sums.cpu().double().sum(0).argmin())
            chosen.append(int(drawn[best]))
            squares_N = after_NT[:, best]
            progress.done()
    return chosen


def _all_squares(vectors: torch.Tensor, centres_CD: torch.Tensor) -> torch.Tensor:
    """Returns the squared distances of all rows: (N, C); vectors in a file come into memory a block at a time."""
    parts = torch.split(vectors, max(1, _NUMBERS // vectors.shape[1]))
    return torch.cat([_squares(part, centres_CD) for part in parts])


def _squares(vectors_BD: torch.Tensor, centres_CD: torch.Tensor) -> torch.Tensor:
    """Returns (B, C) squared distances; below rounding they are 0, so that equal rows do not count as different."""
    lengths_BC = vectors_BD.square().sum(1, keepdim=True) + centres_CD.square().sum(1)
    squares_BC = lengths_BC - 2 * vectors_BD @ centres_CD.T
    return squares_BC.where(squares_BC > 1e-6 * lengths_BC, 0.0)


def _nearest(vectors: torch.Tensor, centres_CD: torch.Tensor) -> torch.Tensor:
    """Returns the two nearest centres of each row, the nearest first: (N, min(2, C))."""
    found = [
        _squares(part, centres_CD).topk(min(2, len(centres_CD)), dim=1, largest=False).indices
        for part in torch.split(vectors, max(1, min(_CELLS // len(centres_CD), _NUMBERS // vectors.shape[1])))
    ]
    return torch.cat(found)


def _means(on_cpu_ND: torch.Tensor, label_N: torch.Tensor, centres_CD: torch.Tensor) -> torch.Tensor:
    """Returns the mean of each cluster's rows, where the centres are; an empty one takes a row far from its own.

    Args:
        on_cpu_ND: The vectors, on the CPU.
        label_N: The cluster of each.
        centres_CD: The centres so far.
    """
    device, centres_CD, label_N = centres_CD.device, centres_CD.cpu(), label_N.cpu()
    counts_C = torch.bincount(label_N, minlength=len(centres_CD))
    sums_CD = torch.zeros_like(centres_CD, dtype=torch.float64)
    rows = max(1, min(_ROWS, _NUMBERS // on_cpu_ND.shape[1]))
    blocks = list(zip(torch.split(on_cpu_ND, rows), torch.split(label_N, rows), strict=True))
    for part_BD, label_B in blocks:
        sums_CD.index_add_(0, label_B, part_BD.double())
    means_CD = (sums_CD / counts_C.clamp(min=1).unsqueeze(1)).float()
    empty = torch.nonzero(counts_C == 0).flatten()
    if len(empty):
        away_N = torch.cat([(part_BD - centres_CD[label_B]).square().sum(1) for part_BD, label_B in blocks])
        means_CD[empty] = on_cpu_ND[away_N.argsort(descending=True, stable=True)[: len(empty)]]
    return means_CD.to(device)


def _without_empty(vectors: torch.Tensor, nearest_NK: torch.Tensor, centres_CD: torch.Tensor) -> NDArray[np.int64]:
    """Returns the nearest clusters among those that have rows, numbered anew."""
    used = torch.unique(nearest_NK[:, 0])
    if len(used) < len(centres_CD):
        nearest_NK = _nearest(vectors, centres_CD[used])
    return nearest_NK.cpu().numpy().astype(np.int64)
