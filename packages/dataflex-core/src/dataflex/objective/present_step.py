"""The optimizer step that is being made: its micro-batches, and what was counted in them before the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from dataflex.objective.label_counts import StepCounts, counted
from dataflex.objective.samples import ROWS, Samples, samples_of_step
from dataflex.objective.step_losses import StepLosses


class PresentStep:
    """What this rank trains on in the step.

    Attributes:
        batches: The micro-batches.
        samples: What the samples of each are.
        counts: Samples and labels of the step, over all micro-batches and ranks; 0 where nobody needs them.
        label_counts: Labels of each micro-batch that are predicted, where the host needs to know; else empty.
        losses: The losses of all samples before the step, once they were asked for.
        loss_scale: The scale of fp16, once it was asked for.
    """

    def __init__(self) -> None:
        self.batches: Sequence[Mapping[str, Any]] = []
        self.samples: Sequence[Samples] = []
        self.counts = StepCounts(0, 0, 0)
        self.label_counts: list[int] = []
        self.losses: StepLosses | None = None
        self.loss_scale: float | None = None
        self._most: torch.Tensor | int = 0

    def begin(self, batches: Sequence[Mapping[str, Any]], documents: bool) -> None:
        """Takes the micro-batches of a step.

        Args:
            batches: They.
            documents: Whether documents of packed rows are samples.
        """
        self.batches, self.losses, self.loss_scale = batches, None, None
        self.samples = samples_of_step(batches) if documents else [ROWS] * len(batches)
        self.label_counts = []

    def count(self, accelerator: Accelerator, device: torch.device, on_host: bool) -> None:
        """Counts samples and labels. Collective.

        Args:
            accelerator: The run's accelerator.
            device: Where the counts are needed.
            on_host: Whether the host needs the labels of each micro-batch: one read for the whole step.
        """
        counts, most = torch.zeros(3, dtype=torch.int64, device=device), 0
        predicted_labels = []  # of each micro-batch
        for batch, samples in zip(self.batches, self.samples, strict=True):
            found = counts.new_zeros(3)
            if "labels" in batch:
                found = counted(batch["labels"], samples).to(device)
                most = max(most, samples.number(len(batch["labels"])))
            counts += found
            predicted_labels.append(found[2])
        if on_host and predicted_labels:
            self.label_counts = torch.stack(predicted_labels).tolist()
        self._most = most
        if accelerator.num_processes > 1:
            own = torch.cat([counts, torch.full_like(counts[:1], most)])
            everyone = torch.as_tensor(accelerator.gather(own)).view(-1, 4)
            counts, self._most = everyone[:, :3].sum(dim=0), everyone[:, 3].max()
        self.counts = StepCounts(*counts)

    @property
    def most_samples(self) -> int:
        """The most samples of a micro-batch, over all micro-batches and ranks.

        On several ranks it is read from the device when it is first asked for in a step.
        """
        self._most = int(self._most)
        return self._most
