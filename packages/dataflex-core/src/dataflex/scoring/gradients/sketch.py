"""A random sketch of long vectors that keeps inner products: sparse Johnson-Lindenstrauss (count sketch).

Each coordinate goes to one of K buckets with a random sign (or to ``nonzeros`` of them, each scaled), so a vector of D
numbers costs D additions and no D x K matrix exists. Coordinates are cut into stretches of K, and each stretch is
rotated by a random shift: two coordinates of one stretch never meet, two of different stretches meet with probability
1/K. With independent signs the estimate of an inner product is unbiased, and its variance

    (sum over i, j in different stretches of x_i^2 y_j^2 + x_i y_i x_j y_j) / K

is that of a dense Rademacher projection without the terms of coordinates that share a stretch: never larger in sum
for x = y, and equal up to these. A gather and a sum, no atomic addition: a GPU repeats it to the last bit.

The map is kept as one bit of sign per coordinate and one shift per stretch, an eighth of a byte per coordinate, and
unfolded a few stretches at a time: 7 billion trainable numbers take 0.9 GB on the device.

Letters: B rows, D numbers of a parameter, K dimensions of the sketch, C stretches of a parameter, P of them at a time.
"""

from __future__ import annotations

import numpy as np
import torch

from dataflex.core.component import seeded

PART_NUMBERS = 2**24
"""Numbers of the gradients, and of the map, that are unfolded at a time: 64 MB."""


class Sketch:
    """The linear map from all trainable parameters' gradients to K numbers, built from a seed.

    Args:
        sizes: Numbers of each parameter, by its place.
        dim: K.
        seed: The same seed gives the same map, on any device and any number of ranks.
        device: Where the gradients are.
        nonzeros: Buckets per coordinate; more even out single large coordinates, at that many times the cost.
    """

    def __init__(self, sizes: list[int], dim: int, seed: int, device: torch.device, nonzeros: int = 1) -> None:
        self.dim = dim
        self._scale = nonzeros**-0.5
        self._maps = [
            [_Stretches(size, dim, seeded(seed, "sketch", index, copy), device) for copy in range(nonzeros)]
            for index, size in enumerate(sizes)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes that the map takes on the device."""
        return sum(each.nbytes for copies in self._maps for each in copies)

    def apply(self, index: int, vectors_BD: torch.Tensor) -> torch.Tensor:
        """Returns the (B, K) share of parameter ``index`` in the sketch; the sketch is the sum over parameters."""
        found_BK = vectors_BD.new_zeros(len(vectors_BD), self.dim)
        for stretches in self._maps[index]:
            stretches.add(vectors_BD, found_BK)
        return found_BK * self._scale if self._scale != 1.0 else found_BK


class _Stretches:
    """Where the coordinates of one parameter go, and with which sign.

    Args:
        size: D.
        dim: K.
        seed: The seed of shifts and signs.
        device: Where the gradients are.
    """

    def __init__(self, size: int, dim: int, seed: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._dim, self._stretches = dim, -(-size // dim)
        positive = torch.randint(0, 2, (self._stretches, dim), generator=generator, dtype=torch.int8)
        self._shifts_C1 = torch.randint(0, dim, (self._stretches, 1), generator=generator).to(device, torch.int32)
        self._bits_CX = torch.from_numpy(np.packbits(positive.numpy(), axis=1, bitorder="little")).to(device)
        self._place_X = torch.arange(8, device=device, dtype=torch.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept on the device."""
        return sum(kept.numel() * kept.element_size() for kept in (self._shifts_C1, self._bits_CX, self._place_X))

    def add(self, vectors_BD: torch.Tensor, sums_BK: torch.Tensor) -> None:
        """Adds the sketch of (B, D) to (B, K), some stretches at a time."""
        step = max(1, PART_NUMBERS // (self._dim * max(1, len(vectors_BD))))
        for first in range(0, self._stretches, step):
            signs_PK, from_PK = self._unfolded(first, min(first + step, self._stretches))
            part = vectors_BD[:, first * self._dim : (first + len(signs_PK)) * self._dim]
            missing = signs_PK.numel() - part.shape[1]  # of the last stretch
            padded = torch.nn.functional.pad(part, (0, missing)) if missing else part
            signed_BPK = padded.reshape(-1, *signs_PK.shape) * signs_PK
            sums_BK += signed_BPK.gather(2, from_PK.expand_as(signed_BPK)).sum(dim=1)

    def _unfolded(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the signs of the coordinates of some stretches, and which of them each bucket takes: both (P, K)."""
        bits_PX = self._bits_CX[first:last]
        bits_PK = ((bits_PX.unsqueeze(2) >> self._place_X) & 1).flatten(1)[:, : self._dim]
        buckets_K = torch.arange(self._dim, device=bits_PX.device)
        return bits_PK.to(torch.int8) * 2 - 1, (buckets_K - self._shifts_C1[first:last]) % self._dim
