"""The loss of a tagged answer (KTO, 2402.01306), as TRL and LLaMA-Factory compute it over a batch.

Letters: B answers of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dataflex.upstream.stage_interface import StageLoss


class TaggedRows(StageLoss):
    """A ``KTOTrainer`` of TRL: by tag, with the batch's KL estimate as a constant; or APO-zero of single answers."""

    name = "kto"

    def parts(
        self, trainer: Any, model: torch.nn.Module, inputs: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns (B,) log ratios, (B,) log ratios of the mismatched answers (0 without a KL term), (B,) tags."""
        raise NotImplementedError

    def row_losses(self, trainer: Any, model: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The KL estimate is that of the batch on all ranks."""
        ratios_B, kl_B, tags_B = self.parts(trainer, model, inputs)
        return kto_losses(trainer, ratios_B, batch_kl(trainer, kl_B) if trainer.calculate_KL else kl_B, tags_B)

    def alone(self, trainer: Any, model: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The KL estimate is the row's own, of its prompt with another row's answer."""
        ratios_B, kl_B, tags_B = self.parts(trainer, model, inputs)
        return kto_losses(trainer, ratios_B, kl_B.detach().clamp(min=0), tags_B)


def kto_losses(trainer: Any, ratios_B: torch.Tensor, kl_B: torch.Tensor, desirable_B: torch.Tensor) -> torch.Tensor:
    """Returns the loss of each tagged answer (Ethayarajh et al. 2024, equation 7): (B,).

    Args:
        trainer: Has ``beta``, ``desirable_weight`` and ``undesirable_weight``.
        ratios_B: (B,) log probability of the answer, less that of the reference.
        kl_B: (B,) or (), the estimate of the KL divergence, without gradient and not below 0.
        desirable_B: (B,) whether the answer is a desirable one.
    """
    margins_B = torch.where(desirable_B, ratios_B - kl_B, kl_B - ratios_B)
    weights_B = torch.where(desirable_B, trainer.desirable_weight, trainer.undesirable_weight)
    return weights_B * (1 - torch.sigmoid(trainer.beta * margins_B))


def by_tag(desirable: torch.Tensor, undesirable: torch.Tensor, desirable_B: torch.Tensor) -> torch.Tensor:
    """Returns values that are given by tag in the order of the batch: (B,)."""
    found_B = desirable.new_zeros(len(desirable_B))
    found_B = found_B.masked_scatter(desirable_B, desirable)
    return found_B.masked_scatter(~desirable_B, undesirable)


def batch_kl(trainer: Any, kl_B: torch.Tensor) -> torch.Tensor:
    """Returns a batch's estimate of the KL divergence as TRL has it: the mean over it and over ranks, not below 0."""
    gathered: torch.Tensor = trainer.accelerator.gather_for_metrics(kl_B.mean().detach())
    return gathered.mean().clamp(min=0)
