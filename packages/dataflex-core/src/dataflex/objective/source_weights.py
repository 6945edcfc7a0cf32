"""The weights of the sources in one optimizer step: v of a mixer that weighs.

The sums over the step that L is divided by (:mod:`dataflex.objective.formula`) are counted source by source, and added
up in float64: neither accumulation nor the number of ranks matters. Where the weights of the sources that have a label
in the step are equal, they are all taken as 1.

Letters: B rows of a micro-batch, X those of the step on this rank, K sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.errors import ComponentError
from dataflex.core.parameter_checks import FLOAT32_MOST
from dataflex.core.ranks.by_row import sum_over_ranks
from dataflex.objective.label_counts import StepCounts, counted_apart
from dataflex.objective.samples import Samples

if TYPE_CHECKING:
    from accelerate import Accelerator

Weights = Callable[[], NDArray[np.float64]]


class SourceWeights:
    """What a token of each source counts in the present step.

    Args:
        weights: Returns (K,) v for the step that begins, the same on every rank.

    Attributes:
        alike: Whether all sources of the step have the same weight.
        counts: The samples and labels of the step, each by the weight of its source.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._now_K = torch.zeros(0)
        self.alike = True
        self.counts = StepCounts(0.0, 0.0, 0.0)

    def begin_step(
        self,
        batches: Sequence[Mapping[str, Any]],
        samples: Sequence[Samples],
        sources: Sequence[torch.Tensor],
        accelerator: Accelerator,
    ) -> None:
        """Takes the weights of a step. Collective.

        Args:
            batches: This rank's micro-batches of the step.
            samples: What the samples of each are.
            sources: (B,) the number of each row's source, for each of them.
            accelerator: The run's accelerator.

        Raises:
            ComponentError: The weights are no numbers of 0 or more that 32 bits hold.
        """
        weights_K = np.asarray(self._weights(), dtype=np.float64)
        if not ((weights_K >= 0) & (weights_K <= FLOAT32_MOST)).all():
            raise ComponentError(
                f"the loss weights are {weights_K.tolist()}; expected numbers from 0 to {FLOAT32_MOST:.3g}"
            )
        counts_3K: NDArray[np.float64] = np.zeros((3, len(weights_K)))
        found = [
            torch.cat([counted_apart(batch["labels"], of_batch), of_batch.of_rows(sources_B)[None]])
            for batch, of_batch, sources_B in zip(batches, samples, sources, strict=True)
        ]
        if found:
            found_4X = torch.cat(found, dim=1).cpu().numpy()  # waits once a step
            np.add.at(counts_3K.T, found_4X[3], found_4X[:3].T)
        counts_3K = sum_over_ranks(counts_3K, accelerator)
        present_K = weights_K[counts_3K[1] > 0]
        self.alike = len(present_K) == 0 or bool((present_K == present_K[0]).all())
        now_K = np.ones_like(weights_K) if self.alike else weights_K
        self._now_K = torch.from_numpy(now_K.astype(np.float32)).to(accelerator.device, non_blocking=True)
        self.counts = StepCounts(*(counts_3K @ now_K).tolist())

    def of(self, sources: torch.Tensor) -> torch.Tensor:
        """Returns the weight of each source: the same shape, float32.

        Args:
            sources: Numbers of sources, on the device.
        """
        return self._now_K[sources]
