"""A random sketch of long vectors that keeps inner products: sparse Johnson-Lindenstrauss (count sketch).

Each coordinate goes to one of K buckets with a random sign (or to ``nonzeros`` of them, each scaled), so a vector of D
numbers costs D additions and no D x K matrix exists. Coordinates are cut into stretches of K, and each stretch is
rotated by a random shift: two coordinates of one stretch never meet, two of different stretches meet with probability
1/K. With independent signs the estimate of an inner product is unbiased, and its variance

    (sum over i, j in different stretches of x_i^2 y_j^2 + x_i y_i x_j y_j) / K

is that of a dense Rademacher projection without the terms of coordinates that share a stretch: never larger in sum
for x = y, and equal up to these. A gather and a sum, no atomic addition: a GPU repeats it to the last bit.

Letters: B rows, D numbers of a parameter, K dimensions of the sketch, C stretches of a parameter.
"""

from __future__ import annotations

import torch

from dataflex.core.component import seeded


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
            [_stretches(size, dim, seeded(seed, "sketch", index, copy), device) for copy in range(nonzeros)]
            for index, size in enumerate(sizes)
        ]

    def apply(self, index: int, vectors_BD: torch.Tensor) -> torch.Tensor:
        """Returns the (B, K) share of parameter ``index`` in the sketch; the sketch is the sum over parameters."""
        found_BK = vectors_BD.new_zeros(len(vectors_BD), self.dim)
        for signs_CK, from_CK in self._maps[index]:
            stretches = len(signs_CK)
            missing = stretches * self.dim - vectors_BD.shape[1]
            padded_BCK = torch.nn.functional.pad(vectors_BD, (0, missing)).view(-1, stretches, self.dim)
            signed_BCK = padded_BCK * signs_CK
            found_BK += signed_BCK.gather(2, from_CK.expand_as(signed_BCK)).sum(dim=1)
        return found_BK * self._scale if self._scale != 1.0 else found_BK


def _stretches(size: int, dim: int, seed: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the signs of the coordinates, and for each bucket the coordinate it takes from a stretch; both (C, K)."""
    generator = torch.Generator().manual_seed(seed)
    stretches = -(-size // dim)
    signs_CK = torch.randint(0, 2, (stretches, dim), generator=generator, dtype=torch.int8) * 2 - 1
    shifts_C1 = torch.randint(0, dim, (stretches, 1), generator=generator)
    from_CK = (torch.arange(dim) - shifts_C1) % dim
    return signs_CK.to(device), from_CK.to(device)
