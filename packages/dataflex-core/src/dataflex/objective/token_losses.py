"""The loss of one token in a weighted run: cross entropy, or what a key of the run puts in its place.

Letters: M tokens of the batch, those without a label included; V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F

from dataflex.model.label_logits import IGNORED


class TokenLoss(Protocol):
    """A loss that is a sum over tokens.

    Attributes:
        counts_first: Whether the plain loss that it stands for is divided by the labels as the training loop counts
            them, the first token of a row included although it is never predicted.
    """

    @property
    def counts_first(self) -> bool:
        """See the attributes of the class."""

    def each(self, logp_MV: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
        """Returns (M,) losses, 0 where the target is -100."""

    def total(self, logp_MV: torch.Tensor, targets_M: torch.Tensor, losses_M: torch.Tensor) -> torch.Tensor:
        """Returns the sum of ``losses_M``, which :meth:`each` returned, added up as the plain loss adds it up."""


class CrossEntropy:
    """-log p(target), the loss of every causal model of ``transformers``."""

    counts_first: ClassVar[bool] = True

    def each(self, logp_MV: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
        """Returns (M,) losses."""
        return F.nll_loss(logp_MV, targets_M, ignore_index=IGNORED, reduction="none")

    def total(self, logp_MV: torch.Tensor, targets_M: torch.Tensor, losses_M: torch.Tensor) -> torch.Tensor:
        """Returns their sum."""
        return F.nll_loss(logp_MV, targets_M, ignore_index=IGNORED, reduction="sum")

    def from_cross_entropy(self, losses_M: torch.Tensor) -> torch.Tensor:
        """Returns the same losses from cross entropies that were computed without log-probabilities: (M,)."""
        return losses_M


class DynamicFineTuning(CrossEntropy):
    """-p(target) log p(target) with the first factor constant: ``use_dft_loss``, arXiv 2508.05629.

    Args:
        count: Labels of the micro-batch that are predicted, where the host knows them: it then waits for nothing.
    """

    def __init__(self, count: int | None = None) -> None:
        self._count = count

    def each(self, logp_MV: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
        """Returns (M,) losses."""
        return self.from_cross_entropy(super().each(logp_MV, targets_M))

    def from_cross_entropy(self, losses_M: torch.Tensor) -> torch.Tensor:
        """Returns (M,) losses: p log p of each."""
        return losses_M * torch.exp(-losses_M.detach())

    def total(self, logp_MV: torch.Tensor, targets_M: torch.Tensor, losses_M: torch.Tensor) -> torch.Tensor:
        """Returns their sum."""
        labelled_M = targets_M != IGNORED  # these alone, as LLaMA-Factory adds them up: zeros would move the last bit
        if self._count is None:
            return losses_M[labelled_M].sum()
        return losses_M[(~labelled_M).to(torch.uint8).argsort(stable=True)[: self._count]].sum()


@dataclass(frozen=True)
class LabelSmoothing:
    """(1 - epsilon) (-log p(target)) + epsilon mean_v(-log p(v)), as ``label_smoothing_factor`` has it.

    The label smoother of ``transformers`` takes the mean over the tokens of one micro-batch that are predicted.
    """

    epsilon: float
    counts_first: ClassVar[bool] = False

    def each(self, logp_MV: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
        """Returns (M,) losses."""
        target_M = F.nll_loss(logp_MV, targets_M, ignore_index=IGNORED, reduction="none")
        uniform_M = -logp_MV.mean(dim=-1).masked_fill(targets_M == IGNORED, 0.0)
        return (1 - self.epsilon) * target_M + self.epsilon * uniform_M

    def total(self, logp_MV: torch.Tensor, targets_M: torch.Tensor, losses_M: torch.Tensor) -> torch.Tensor:
        """Returns their sum."""
        return losses_M.sum()


CROSS_ENTROPY = CrossEntropy()
