"""The losses of TRL's DPOTrainer, RewardTrainer and KTOTrainer, row by row, for the releases that LLaMA-Factory takes.

As with LLaMA-Factory's own, they are made of the trainer's methods where it has some.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from dataflex.upstream.kto_rows import TaggedRows, by_tag
from dataflex.upstream.stage_interface import StageLoss, Use, cut

RUNNING = ("bco_pair",)
"""Losses that compare a pair with a mean over the batches before it."""

SORTED = ("aot", "aot_pair")
"""Losses that compare the answer of one pair with that of another, by rank."""


class PinnedDPO(StageLoss):
    """``DPOTrainer``: the weighted sum of the losses that ``loss_type`` names."""

    name = "dpo"
    stands_on = (
        "compute_loss", "get_batch_loss_metrics", "concatenated_forward", "compute_ref_log_probs", "dpo_loss",
    )  # fmt: skip
    forwards = ("concatenated_forward", "compute_ref_log_probs")

    def rows_in(self, inputs: Mapping[str, Any]) -> int:
        """The prompts are the rows."""
        return len(inputs["prompt_input_ids"])

    def row_losses(self, trainer: Any, model: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The loss of ``get_batch_loss_metrics`` before its mean."""
        smoothing = trainer.label_smoothing  # exo_pair raises one of 0 when it is first used
        try:
            return self._losses(trainer, model, dict(inputs))
        finally:
            trainer.label_smoothing = smoothing

    def alone(self, trainer: Any, model: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The mean token loss that ``rpo_alpha`` and ``sft`` add is one over the batch: then row by row."""
        if not _adds_tokens(trainer):
            return self.row_losses(trainer, model, inputs)
        rows = self.rows_in(inputs)
        return torch.cat([self.row_losses(trainer, model, cut(inputs, row, rows)) for row in range(rows)])

    def refused(self, trainer: Any, use: Use) -> str | None:
        """Losses in which the pairs of a batch meet."""
        running = [name for name in trainer.loss_type if name in RUNNING]
        if running:
            return f"loss_type: {running[0]} compares a pair with the mean reward of the batches before it"
        ranked = [name for name in trainer.loss_type if name in SORTED]
        if ranked:
            return f"loss_type: {ranked[0]} sorts the answers of a batch, so a pair has no loss of its own"
        if trainer.args.use_liger_loss:
            return "use_liger_loss: true computes the loss of a batch in one -> set it to false"
        if trainer.aux_loss_enabled:
            return "output_router_logits: true adds the routers' loss over the batch -> set it to false"
        if use is Use.WEIGH and _adds_tokens(trainer):
            return "rpo_alpha and loss_type: sft add the mean over all tokens of a batch -> leave them out"
        return None

    def _losses(self, trainer: Any, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        policy = trainer.concatenated_forward(model, inputs)
        if "ref_chosen_logps" in inputs and "ref_rejected_logps" in inputs:
            reference = (inputs["ref_chosen_logps"], inputs["ref_rejected_logps"])
        else:
            reference = trainer.compute_ref_log_probs(inputs)
        chosen, rejected = policy["chosen_logps"], policy["rejected_logps"]
        losses_B = torch.zeros_like(chosen)
        weights = trainer.loss_weights or [1.0] * len(trainer.loss_type)
        for loss_type, weight in zip(trainer.loss_type, weights, strict=True):
            losses_B = losses_B + weight * trainer.dpo_loss(chosen, rejected, *reference, loss_type, policy)[0]
        if trainer.args.rpo_alpha is not None:
            losses_B = losses_B + trainer.args.rpo_alpha * policy["nll_loss"]
        return losses_B * policy["policy_weights"] if trainer.use_weighting else losses_B


class PinnedReward(StageLoss):
    """``RewardTrainer``: -log sigmoid(chosen - rejected - margin), and what keeps rewards centred."""

    name, stands_on = "rm", ("compute_loss",)

    def rows_in(self, inputs: Mapping[str, Any]) -> int:
        """Two sequences are a row."""
        return len(inputs["input_ids"]) // 2

    def row_losses(self, trainer: Any, model: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The margin goes to the model as well, which leaves it: as in training."""
        rewards = model(**inputs | {"use_cache": False}).logits.squeeze(-1)  # type: ignore[operator]
        chosen_B, rejected_B = torch.chunk(rewards, chunks=2)
        apart_B = chosen_B - rejected_B
        losses_B = -logsigmoid(apart_B - inputs["margin"] if "margin" in inputs else apart_B)
        centre = trainer.args.center_rewards_coefficient
        return losses_B if centre is None else losses_B + centre * (chosen_B + rejected_B) ** 2


class PinnedKTO(TaggedRows):
    """``KTOTrainer``: (1 - sigmoid(beta (ratio - KL))) by tag, with the batch's KL estimate as a constant."""

    stands_on = ("compute_loss", "get_batch_loss_metrics", "forward", "kto_loss", "_compute_kl_logps")
    forwards = ("forward",)

    def rows_in(self, inputs: Mapping[str, Any]) -> int:
        """One sequence is a row."""
        return len(inputs["label"])

    def refused(self, trainer: Any, use: Use) -> str | None:
        """Losses that are computed over a batch."""
        if trainer.args.use_liger_loss:
            return "use_liger_loss: true computes the loss of a batch in one -> set it to false"
        if trainer.aux_loss_enabled:
            return "output_router_logits: true adds the routers' loss over the batch -> set it to false"
        return None

    def parts(
        self, trainer: Any, model: torch.nn.Module, inputs: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See :meth:`TaggedRows.parts`."""
        chosen, rejected, _, _, kl_logps_B = trainer.forward(model, inputs)[:5]
        tags_B = torch.tensor(inputs["label"], dtype=torch.bool, device=chosen.device)
        logps_B = by_tag(chosen, rejected, tags_B)
        if "reference_logps" in inputs:
            ref_B, ref_kl_B = inputs["reference_logps"], inputs.get("reference_KL_logps")
        else:
            with torch.no_grad():
                ref_B, ref_kl_B = self._reference(trainer, inputs, tags_B)
        kl_B = kl_logps_B - ref_kl_B if trainer.calculate_KL else torch.zeros_like(logps_B)
        return logps_B - ref_B, kl_B, tags_B

    def _reference(self, trainer: Any, inputs: Mapping[str, Any], tags_B: torch.Tensor) -> tuple[Any, Any]:
        if trainer.ref_model is None:
            with trainer.null_ref_context():
                chosen, rejected, _, _, kl_logps_B = trainer.forward(trainer.model, inputs)[:5]
        else:
            chosen, rejected, _, _, kl_logps_B = trainer.forward(trainer.ref_model, inputs)[:5]
        return by_tag(chosen, rejected, tags_B), kl_logps_B


def _adds_tokens(trainer: Any) -> bool:
    return trainer.args.rpo_alpha is not None or "sft" in trainer.loss_type
