"""The gradients of single target rows, kept while a pass over them makes their means: what an explanation divides.

A row's influence on a target set is a mean over the set's rows of cosines. The mean of the vectors is all that scoring
needs; to say which target row gave how much, each one's vector must be there when the rows to be explained are known.
A pass over the target rows takes as long as scoring as many rows, so their vectors are kept, on the CPU of the rank
that made them, in at most :data:`NUMBERS` numbers of all sets together:

    whole      where max(M, 64) * D fit: terms are exact
    sketched   else, to K = NUMBERS / M numbers, from 2,048 to 65,536 (see sketch.py). A cosine c is then estimated
               without bias, with a standard deviation of about sqrt((1 + c^2) / K): 0.02 to 0.004
    as scored  where the run sketches gradients itself (``proj_dim``): these are what its scores are made of

Letters: M target rows, J sets, D trainable numbers, K numbers kept of each, S rows to be explained, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.component import seeded
from dataflex.core.explain import sampled_targets
from dataflex.core.ranks.by_row import sum_over_ranks
from dataflex.scoring.gradients.sinks import Direction, Sink, Sketched, Whole
from dataflex.scoring.gradients.sketch import Sketch

if TYPE_CHECKING:
    from accelerate import Accelerator

NUMBERS = 2**24
"""Numbers that are kept of all target rows together: 64 MB."""
MOST_KEPT = 8192
"""Target rows that are kept; of more, a sample."""
_LEAST_DIM, _MOST_DIM = 2**11, 2**16
_ROWS = 64  # that may be explained at once: whole vectors of so many fit too

Keep = Callable[[NDArray[np.int64], Mapping[int, torch.Tensor], torch.Tensor], None]
"""``keep(places_B, parts, factors_B)`` takes vectors of target rows by parameter, each to be multiplied by a factor."""


@dataclass(frozen=True)
class SetTerms:
    """What the rows of a target set give to the scores of S rows.

    Attributes:
        places: (M,) numbers of the rows, or groups, that were kept.
        terms: (M, S) their terms.
        totals: (S,) the sum of the terms of all rows of the set, also of those that were not kept: the score.
        rows: How many rows, or groups, the set has that have a vector.
    """

    places: NDArray[np.int64]
    terms: NDArray[np.float64]
    totals: NDArray[np.float64]
    rows: int


@dataclass
class _Set:
    sampled: NDArray[np.int64]
    total: torch.Tensor
    count: int | None
    vectors: int = 0
    places: list[NDArray[np.int64]] = field(default_factory=list)
    kept: list[torch.Tensor] = field(default_factory=list)


class KeptTargets:
    """Keeps the vectors of target rows for one update.

    Args:
        sizes: (M_j) rows, or groups, of each set.
        counts: Over how many vectors each set's mean is taken; None for those that are not 0.
        parameters: Numbers of each parameter, by its place.
        seed: Of the sketch, and of the sample where there are too many rows.
        device: Where the gradients are.
        scored: The sketch that the run scores with; None where it compares whole gradients.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        counts: Mapping[str, int | None],
        parameters: Sequence[int],
        seed: int,
        device: torch.device,
        scored: Sketch | None = None,
    ) -> None:
        self._sizes, self._device, self._scored = list(parameters), device, scored
        self._sketch: Sketch | None = None
        rows, numbers = min(MOST_KEPT, sum(sizes.values())), sum(parameters)
        if scored is not None:
            self.dim = scored.dim
        elif max(rows, _ROWS) * numbers <= NUMBERS:
            self.dim = numbers
        else:
            self.dim = min(_MOST_DIM, max(_LEAST_DIM, NUMBERS // rows))
            self._sketch = Sketch(self._sizes, self.dim, seeded(seed, "kept targets"), device)
        generator = np.random.Generator(np.random.Philox(key=seeded(seed, "kept targets")))
        most = max(1, MOST_KEPT // len(sizes))
        self._sets = {
            name: _Set(
                sampled_targets(size, generator, most=most), torch.zeros(self.dim, dtype=torch.float64), counts[name]
            )
            for name, size in sizes.items()
        }

    @property
    def exact(self) -> bool:
        """Whether terms are those of the scores, and no estimates of them."""
        return self._sketch is None

    def of_set(self, name: str) -> Keep:
        """Returns what takes the vectors of a set as they are made."""
        own = self._sets[name]

        def keep(places_B: NDArray[np.int64], parts: Mapping[int, torch.Tensor], factors_B: torch.Tensor) -> None:
            found_BK = self._features(parts, len(places_B)) * factors_B.to(self._device)[:, None]
            found_BK = found_BK.cpu()
            own.total += found_BK.sum(dim=0, dtype=torch.float64)
            own.vectors += int((factors_B != 0).sum())
            wanted_B = np.isin(places_B, own.sampled)
            own.places.append(places_B[wanted_B])
            own.kept.append(found_BK[torch.from_numpy(wanted_B)])

        return keep

    def sink(self, rows: int, direction: Direction | None) -> Sink:
        """Returns what takes the steps of rows that are to be explained."""
        sketch = self._sketch if self._scored is None else self._scored
        return (
            Whole(rows, self._device, direction) if sketch is None else Sketched(rows, self._device, direction, sketch)
        )

    def steps(self, sink: Sink) -> torch.Tensor:
        """Returns what :meth:`sink` took: (B, K)."""
        if isinstance(sink, Sketched):
            return sink.features_BK
        assert isinstance(sink, Whole)
        return self._features(sink.vectors, len(sink.squares_B))

    def terms(self, steps_SK: NDArray[np.float32], accelerator: Accelerator | None) -> dict[str, SetTerms]:
        """Returns what each set's rows give to S rows, the same on every rank. Collective.

        Args:
            steps_SK: (S, K) the steps of these rows, each of length 1.
            accelerator: The run's accelerator; None means a single process.
        """
        steps_KS = torch.from_numpy(steps_SK.astype(np.float64)).T
        found = {}
        for name, own in self._sets.items():
            terms_MS = np.zeros((len(own.sampled), steps_KS.shape[1] + 1))  # the last column: whether there is a vector
            for places, kept_BK in zip(own.places, own.kept, strict=True):
                at = np.searchsorted(own.sampled, places)
                terms_MS[at, :-1] = (kept_BK.double() @ steps_KS).numpy()
                terms_MS[at, -1] = (kept_BK != 0).any(dim=1).numpy()
            totals_S = (own.total @ steps_KS).numpy()
            numbers = np.concatenate([terms_MS.ravel(), totals_S, [float(own.vectors)]])
            summed = sum_over_ranks(numbers, accelerator)
            terms_MS = summed[: terms_MS.size].reshape(terms_MS.shape)
            vectors = int(summed[-1])
            there_M, terms_MS = terms_MS[:, -1] > 0, terms_MS[:, :-1] / (own.count or max(vectors, 1))
            complete = int(there_M.sum()) == vectors
            totals_S = terms_MS.sum(axis=0) if complete else summed[-1 - len(totals_S) : -1] / (own.count or vectors)
            found[name] = SetTerms(own.sampled[there_M], terms_MS[there_M], totals_S, vectors)
        return found

    def _features(self, parts: Mapping[int, torch.Tensor], rows: int) -> torch.Tensor:
        """Returns the numbers that are kept of vectors given by parameter: (B, K); a parameter without any is 0."""
        if self._scored is not None:
            return parts[0].to(self._device)
        found_BK = torch.zeros(rows, self.dim, device=self._device)
        first = 0
        for place, size in enumerate(self._sizes):
            if place in parts and self._sketch is not None:
                found_BK += self._sketch.apply(place, parts[place].to(self._device))
            elif place in parts:
                found_BK[:, first : first + size] = parts[place]
            first += size
        return found_BK
