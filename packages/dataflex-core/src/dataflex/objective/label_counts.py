"""The samples and labels of an optimizer step: what its loss is a mean over.

Letters: B rows of a micro-batch, T tokens, S samples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from dataflex.model.label_logits import IGNORED
from dataflex.objective.samples import ROWS, Samples


class StepCounts(NamedTuple):
    """Counts of a step, over all its micro-batches and ranks: numbers, or scalar tensors on the device.

    Where sources have weights, each sample counts by the weight v of its source.

    Attributes:
        samples: R, samples with a label to predict.
        labels: Labels, the first token's of a row among them.
        predicted: Labels that are predicted.
    """

    samples: torch.Tensor | float
    labels: torch.Tensor | float
    predicted: torch.Tensor | float


def counted(labels_BT: torch.Tensor, samples: Samples = ROWS) -> torch.Tensor:
    """Returns what a batch adds to :class:`StepCounts`: (3,) int64."""
    predicted_BT = predicted(labels_BT)
    samples_S = samples.loss_sums(predicted_BT) > 0
    return torch.stack([samples_S.sum(), (labels_BT != IGNORED).sum(), predicted_BT.sum()])


def counted_apart(labels_BT: torch.Tensor, samples: Samples = ROWS) -> torch.Tensor:
    """As :func:`counted`, sample by sample: (3, S) int64."""
    predicted_S = samples.loss_sums(predicted(labels_BT))
    labels_S = samples.label_sums(labels_BT != IGNORED)
    return torch.stack([(predicted_S > 0).to(labels_S.dtype), labels_S, predicted_S])


def predicted(labels_BT: torch.Tensor) -> torch.Tensor:
    """Returns (B, T) bool: which positions predict a label; the first token of a row is never predicted."""
    return targets(labels_BT) != IGNORED


def targets(labels_BT: torch.Tensor) -> torch.Tensor:
    """Returns what is predicted at each position: (B, T) the label of the next one."""
    return F.pad(labels_BT, (0, 1), value=IGNORED)[:, 1:].contiguous()
