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
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import send_to_device

from dataflex.model.autocast import autocast
from dataflex.model.cross_entropy import at_positions
from dataflex.model.label_logits import IGNORED, label_positions
from dataflex.model.label_losses import losses_at_labels
from dataflex.model.undisturbed import undisturbed
from dataflex.objective.samples import Samples
from dataflex.scoring.passes.row_pass import without_replicas


@dataclass(frozen=True)
class StepLosses:
    """The samples of one rank's part of a step.

    Attributes:
        losses: (S,) fp32 mean token losses, in the order of training; 0 without labels.
        labelled: (S,) bool, whether each has a label to predict.
        rows: (S,) their row numbers; None where the batches do not say.
        counts: Samples of each micro-batch; they sum to S.
    """

    losses: torch.Tensor
    labelled: torch.Tensor
    rows: torch.Tensor | None
    counts: tuple[int, ...]

    def part(self, number: int) -> slice:
        """Returns where the samples of a micro-batch stand."""
        start = sum(self.counts[:number])
        return slice(start, start + self.counts[number])


def step_losses(
    model: torch.nn.Module,
    batches: Sequence[tuple[Mapping[str, Any], Samples, torch.Tensor | None]],
    accelerator: Accelerator,
) -> StepLosses:
    """Returns the losses of all samples of this rank's micro-batches under the present weights.

    Every rank calls it with as many batches, as sharded engines need it.

    Args:
        model: The model being trained. It is left as it was.
        batches: The micro-batches of the step, each with ``labels`` (B, T); what their samples are; and the (B,) row
            numbers of each, or None.
        accelerator: For the device and mixed precision.
    """
    model = without_replicas(model)
    losses, labelled, numbers = [], [], []
    labels = [batch["labels"].to(accelerator.device) for batch, _, _ in batches]
    label_counts = torch.stack([(part_BT[:, 1:] != IGNORED).sum() for part_BT in labels]).tolist()  # waits once
    with undisturbed(model), torch.no_grad(), losses_at_labels(model) as forward:
        for (batch, samples, rows_B), count in zip(batches, label_counts, strict=True):
            inputs = dict(send_to_device(dict(batch), accelerator.device))
            labels_BT = inputs.pop("labels")
            positions_M, targets_M = label_positions(labels_BT, count)
            with autocast(accelerator):
                losses_M = forward(inputs, positions_M, targets_M, labels_BT.shape)
            losses_BT = at_positions(losses_M, positions_M.to(losses_M.device), labels_BT.shape)
            counts_S = samples.loss_sums(F.pad(labels_BT[:, 1:] != IGNORED, (0, 1)))
            losses.append(samples.loss_sums(losses_BT) / counts_S.clamp(min=1))
            labelled.append(counts_S > 0)  # not by NaN: a diverged loss is NaN too
            if rows_B is not None:
                numbers.append(samples.of_rows(rows_B.to(counts_S.device)))
    known = torch.cat(numbers) if len(numbers) == len(losses) else None
    return StepLosses(torch.cat(losses), torch.cat(labelled), known, tuple(len(part_S) for part_S in losses))
