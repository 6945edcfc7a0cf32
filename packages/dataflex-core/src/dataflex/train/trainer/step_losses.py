"""The losses of all samples of an optimizer step before it is made: one forward pass more, without gradients.

A weighter that compares samples over all micro-batches of an accumulated step needs their losses when the first one is
weighed; the training forward gives them one micro-batch at a time. The pass runs in eval mode, so it knows no dropout,
and computes logits at label positions alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device

from dataflex.scoring.autocast import autocast
from dataflex.scoring.cross_entropy import sample_means
from dataflex.scoring.label_logits import IGNORED, label_positions
from dataflex.scoring.label_losses import losses_at_labels
from dataflex.scoring.row_pass import without_replicas
from dataflex.scoring.session import undisturbed


@dataclass(frozen=True)
class StepLosses:
    """The samples with labels of one rank's part of a step.

    Attributes:
        losses: (S,) fp32 mean token losses, in the order of training.
        rows: (S,) their row numbers; None where the batches do not say.
        counts: Samples with labels of each micro-batch; they sum to S.
    """

    losses: torch.Tensor
    rows: torch.Tensor | None
    counts: tuple[int, ...]

    def part(self, number: int) -> slice:
        """Returns where the samples of a micro-batch stand."""
        start = sum(self.counts[:number])
        return slice(start, start + self.counts[number])


def step_losses(
    model: torch.nn.Module,
    batches: Sequence[Mapping[str, Any]],
    rows: Sequence[torch.Tensor | None],
    accelerator: Accelerator,
) -> StepLosses:
    """Returns the losses of all samples of this rank's micro-batches under the present weights.

    Every rank calls it with as many batches, as sharded engines need it.

    Args:
        model: The model being trained. It is left as it was.
        batches: The micro-batches of the step; each has ``labels`` (B, T).
        rows: (B,) row numbers of each, or None.
        accelerator: For the device and mixed precision.
    """
    model = without_replicas(model)
    losses, numbers, counts = [], [], []
    with undisturbed(model), torch.no_grad(), losses_at_labels(model) as forward:
        for batch, rows_B in zip(batches, rows, strict=True):
            inputs = dict(send_to_device(dict(batch), accelerator.device))
            labels_BT = inputs.pop("labels")
            positions_M, targets_M = label_positions(labels_BT)
            with autocast(accelerator):
                losses_M = forward(inputs, positions_M, targets_M, labels_BT.shape)
            losses_B = sample_means(losses_M, positions_M.to(losses_M.device), labels_BT.shape)
            labelled_B = (labels_BT[:, 1:] != IGNORED).any(dim=1)  # not by NaN: a diverged loss is NaN too
            losses.append(losses_B[labelled_B])
            counts.append(len(losses[-1]))
            if rows_B is not None:
                numbers.append(rows_B.to(labelled_B.device)[labelled_B])
    known = torch.cat(numbers) if len(numbers) == len(losses) else None
    return StepLosses(torch.cat(losses), known, tuple(counts))
