"""The losses of LLaMA-Factory's own trainers for ``stage: rm``, ``dpo`` and ``kto``, row by row.

Each is made of the trainer's own methods, so that a setting of the stage is heeded where the trainer heeds it. The
reward model's loss is one expression in its ``compute_loss`` and is written again here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from dataflex.upstream.kto_rows import batch_kl, by_tag, kto_losses
from dataflex.upstream.stage_interface import StageLoss, Use

SMALLEST = 1e-6
"""LLaMA-Factory leaves a term out whose weight is not above this."""


class PairwiseRewards(StageLoss):
    """``PairwiseTrainer``: -log sigmoid(chosen - rejected), each the value at the last token of the answer."""

    name, stands_on = "rm", ("compute_loss",)

    def rows_in(self, inputs: Mapping[str, Any]) -> int:
        """Two sequences are a row."""
        return len(inputs["input_ids"]) // 2

    def row_losses(self, trainer: Any, model: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        """A value head gives (logits, loss, values)."""
        tokens = {name: value for name, value in inputs.items() if name != "labels"}  # their loss is not looked at
        _, _, values = model(**tokens, output_hidden_states=True, return_dict=True, use_cache=False)
        ends = inputs["attention_mask"].sum(dim=-1, keepdim=True) - 1
        chosen_B, rejected_B = values.gather(dim=-1, index=ends).squeeze(-1).float().chunk(2)
        return -logsigmoid(chosen_B - rejected_B)


class PreferenceLoss(StageLoss):
    """``CustomDPOTrainer``: what ``pref_loss`` names, of log probabilities against those of the reference model."""

    name = "dpo"
    stands_on = (
        "compute_loss", "get_batch_loss_metrics", "concatenated_forward", "compute_reference_log_probs",
        "compute_preference_loss", "dpo_loss", "odds_ratio_loss", "simpo_loss",
    )  # fmt: skip
    forwards = ("concatenated_forward", "compute_reference_log_probs")

    def rows_in(self, inputs: Mapping[str, Any]) -> int:
        """Two sequences are a row."""
        return len(inputs["input_ids"]) // 2

    def row_losses(self, trainer: Any, model: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The loss of ``get_batch_loss_metrics`` before its mean; ``pref_ftx`` adds the answer's mean token loss."""
        policy = trainer.concatenated_forward(model, dict(inputs))
        reference = trainer.compute_reference_log_probs(model, dict(inputs))
        chosen, rejected = policy["chosen_logps"], policy["rejected_logps"]
        losses_B: torch.Tensor = trainer.compute_preference_loss(chosen, rejected, *reference)[0]
        if trainer.ftx_gamma > SMALLEST:
            losses_B = losses_B - trainer.ftx_gamma * policy["chosen_logps_avg"]
        return losses_B

    def refused(self, trainer: Any, use: Use) -> str | None:
        """BCO compares with a mean over all batches so far."""
        if trainer.finetuning_args.use_ref_model and trainer.bco_gemma > SMALLEST:
            return (
                f"pref_bco_weight: {trainer.bco_gemma:g} compares a pair with the mean reward of the batches before it "
                "-> set pref_bco_weight: 0"
            )
        return None

    def remark(self, trainer: Any) -> str | None:
        """From the release on in which TRL takes the loss as an argument, LLaMA-Factory does not hand it on."""
        takes_type = "loss_type" in inspect.signature(type(trainer).dpo_loss).parameters
        if takes_type and trainer.finetuning_args.use_ref_model and trainer.loss_type != "sigmoid":
            return (
                f"pref_loss: {trainer.loss_type} trains by the sigmoid loss with this TRL: LLaMA-Factory does not tell "
                "TRL's dpo_loss which one is meant; rows are scored by the loss that is trained on"
            )
        return None


class TaggedAnswers(StageLoss):
    """``CustomKTOTrainer``: (1 - sigmoid(beta (ratio - KL))) by tag, with the batch's KL estimate as a constant."""

    name = "kto"
    stands_on = (
        "compute_loss", "get_batch_loss_metrics", "forward", "concatenated_forward", "compute_reference_log_probs",
        "kto_loss",
    )  # fmt: skip
    forwards = ("concatenated_forward", "compute_reference_log_probs")

    def rows_in(self, inputs: Mapping[str, Any]) -> int:
        """One sequence is a row."""
        return len(inputs["kto_tags"])

    def row_losses(self, trainer: Any, model: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The KL estimate is that of the batch on all ranks."""
        ratios_B, kl_B, _ = self._parts(trainer, model, inputs)
        return kto_losses(trainer, ratios_B, batch_kl(trainer, kl_B), inputs["kto_tags"])

    def alone(self, trainer: Any, model: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The KL estimate is the row's own, of its prompt with another row's answer."""
        ratios_B, kl_B, averages = self._parts(trainer, model, inputs)
        tags_B = inputs["kto_tags"]
        losses_B = kto_losses(trainer, ratios_B, kl_B.detach().clamp(min=0), tags_B)
        if trainer.ftx_gamma > SMALLEST:
            losses_B = losses_B - trainer.ftx_gamma * by_tag(averages, averages.new_zeros(int((~tags_B).sum())), tags_B)
        return losses_B

    def refused(self, trainer: Any, use: Use) -> str | None:
        """The SFT term of a batch is no mean over its rows."""
        if use is Use.WEIGH and trainer.ftx_gamma > SMALLEST:
            return (
                f"pref_ftx: {trainer.ftx_gamma:g} adds a term that depends on how many desirable rows a batch has "
                "-> set pref_ftx: 0"
            )
        return None

    def _parts(
        self, trainer: Any, model: torch.nn.Module, inputs: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns (B,) log ratios, (B,) those of the mismatched answers, (desirable rows,) mean token log probs."""
        tags_B = inputs["kto_tags"]
        chosen, rejected, _, _, kl_logps_B, averages = trainer.concatenated_forward(model, dict(inputs))
        ref_chosen, ref_rejected, ref_kl_B = trainer.compute_reference_log_probs(model, dict(inputs))
        ratios_B = by_tag(chosen - ref_chosen, rejected - ref_rejected, tags_B)
        return ratios_B, kl_logps_B - ref_kl_B, averages
