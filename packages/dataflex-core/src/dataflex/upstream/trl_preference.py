"""The losses of TRL's DPOTrainer and KTOTrainer, row by row, as the releases since the fused output layer compute them.

These releases compute a batch's loss in one method, so what stands between the log probabilities and the mean is
written here; the log probabilities, the reference and its adapters are the trainer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dataflex.upstream.kto_rows import TaggedRows
from dataflex.upstream.pair_losses import PAIR_LOSSES, Pairs, Settings, divergent
from dataflex.upstream.stage_interface import StageLoss, Use

_NOT_FOR_MODEL = frozenset({"completion_mask", "ref_chosen_logps", "ref_rejected_logps", "label", "ref_logps"})
_OF_MISMATCHED = ("KL_", "ref_KL_")  # how the names of what belongs to the mismatched answers of KTO begin


class FusedDPO(StageLoss):
    """``DPOTrainer``: the weighted sum of the losses that ``loss_type`` names, with the weights of WPO where asked."""

    name, stands_on = "dpo", ("compute_loss", "_compute_loss", "compute_ref_log_probs")
    reference = "ref_model"

    def rows_in(self, inputs: Mapping[str, Any]) -> int:
        """The chosen answers stand above the rejected ones."""
        return len(inputs["input_ids"]) // 2

    def row_losses(self, trainer: Any, model: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The loss of ``_compute_loss`` before its mean."""
        answers = _answers(trainer, model, inputs)
        logps_B, per_token, mask = _summed(trainer, answers, inputs), answers.log_probs, _shifted(inputs)
        chosen_B, rejected_B = logps_B.chunk(2)
        if trainer.precompute_ref_logps:
            ref_chosen_B, ref_rejected_B = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            ref_chosen_B, ref_rejected_B = trainer.compute_ref_log_probs(_reference(trainer), inputs)
        chosen_B, rejected_B = chosen_B - ref_chosen_B, rejected_B - ref_rejected_B
        per_token = per_token[:, -mask.size(1) :]
        chosen_tokens_B, rejected_tokens_B = inputs["completion_mask"].sum(1).chunk(2)  # without a prompt, one more
        pairs = Pairs(
            chosen_B, rejected_B, self._score(trainer, chosen_B), self._score(trainer, rejected_B),
            chosen_tokens_B, rejected_tokens_B,
            -per_token.chunk(2)[0][mask.chunk(2)[0].bool()].mean(),
        )  # fmt: skip
        settings = Settings(trainer.beta, trainer.label_smoothing, trainer.args.discopop_tau)
        named = zip(trainer.loss_types, trainer.loss_weights, strict=True)
        losses_B = torch.zeros_like(chosen_B)
        for name, weight in named:
            losses_B = losses_B + weight * PAIR_LOSSES[name](pairs, settings)
        return losses_B * self._weights(answers, per_token, mask) if trainer.use_weighting else losses_B

    def alone(self, trainer: Any, model: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The mean token loss of ``sft`` is one over the batch: then row by row."""
        if "sft" not in trainer.loss_types:
            return self.row_losses(trainer, model, inputs)
        rows = self.rows_in(inputs)
        return torch.cat([self.row_losses(trainer, model, _pair(inputs, row, rows)) for row in range(rows)])

    def refused(self, trainer: Any, use: Use) -> str | None:
        """Losses in which the pairs of a batch meet."""
        unknown = [name for name in trainer.loss_types if name not in PAIR_LOSSES]
        if unknown:
            return f"loss_type: {unknown[0]} sorts the answers of a batch, so a pair has no loss of its own"
        if use is Use.WEIGH and "sft" in trainer.loss_types:
            return "loss_type: sft adds the mean over all tokens of a batch -> leave it out"
        return _meets(trainer)

    def _score(self, trainer: Any, ratios_B: torch.Tensor) -> torch.Tensor:
        return divergent(ratios_B, trainer.f_divergence_type, trainer.f_alpha_divergence_coef)

    def _weights(self, answers: Any, per_token: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B,) the weight of each pair in WPO (2406.11827), equation 2."""
        with torch.no_grad():
            aligned = (per_token - answers.log_sum_sq_probs[:, -mask.size(1) :]) * mask
            chosen_B, rejected_B = torch.exp(aligned.sum(1) / mask.sum(1).clamp(min=1)).chunk(2)
            return chosen_B * rejected_B


class FusedKTO(TaggedRows):
    """``KTOTrainer``: by tag, with the batch's KL estimate as a constant; or APO-zero of single answers."""

    stands_on = ("compute_loss", "_compute_loss", "_compute_kl_logps", "compute_ref_log_probs")
    reference = "ref_model"

    def rows_in(self, inputs: Mapping[str, Any]) -> int:
        """One sequence is a row."""
        return len(inputs["input_ids"])

    def refused(self, trainer: Any, use: Use) -> str | None:
        """Losses that are computed over a batch."""
        return _meets(trainer)

    def parts(
        self, trainer: Any, model: torch.nn.Module, inputs: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See :meth:`TaggedRows.parts`."""
        kl_logps_B = trainer._compute_kl_logps(model, dict(inputs))
        logps_B = _answers(trainer, model, inputs).log_probs[:, -_shifted(inputs).size(1) :].sum(1)
        if trainer.precompute_ref_logps:
            ref_B, ref_kl_B = inputs["ref_logps"], inputs.get("ref_KL_logps")
        else:
            ref_B, ref_kl_B = trainer.compute_ref_log_probs(_reference(trainer), inputs)
        tags_B = torch.as_tensor(inputs["label"], dtype=torch.bool, device=logps_B.device)
        kl_B = kl_logps_B - ref_kl_B if trainer.calculate_KL else torch.zeros_like(ref_B)
        return logps_B - ref_B, kl_B, tags_B


def _answers(trainer: Any, model: torch.nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Returns the model's output, with the log probability of each token of an answer: 0 at all other places."""
    own = {name: value for name, value in inputs.items() if not name.startswith(_OF_MISMATCHED)}
    given = {name: value for name, value in own.items() if name not in _NOT_FOR_MODEL}
    given["labels"] = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    return model(**given, use_cache=False, fused_lm_head=True)


def _summed(trainer: Any, answers: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Returns the log probability of each answer: (2B,). LD-DPO (2409.06411) takes less of what one has more tokens."""
    mask = _shifted(inputs)
    per_token: torch.Tensor = answers.log_probs[:, -mask.size(1) :]
    if trainer.ld_alpha is None:
        return per_token.sum(1)
    places, (chosen, rejected) = mask.cumsum(1), mask.sum(1).chunk(2)
    beyond = places > torch.minimum(chosen, rejected).repeat(2)[:, None]
    counted = torch.where(beyond, trainer.ld_alpha, 1.0) * (places > 0)
    return (per_token * counted).sum(1)


def _pair(inputs: Mapping[str, Any], row: int, rows: int) -> dict[str, Any]:
    """Returns one pair of a batch, with the batch's padding: two sequences, and one of what a pair has one of."""
    return {
        name: value[[row, rows + row]] if len(value) == 2 * rows else value[row : row + 1]
        for name, value in inputs.items()
    }


def _shifted(inputs: Mapping[str, Any]) -> torch.Tensor:
    mask: torch.Tensor = inputs["completion_mask"][:, 1:]
    return mask


def _reference(trainer: Any) -> torch.nn.Module:
    model: torch.nn.Module = trainer.model if trainer.ref_model is None else trainer.ref_model
    return model


def _meets(trainer: Any) -> str | None:
    """Returns why the rows of a batch meet in the loss of any stage, if they do."""
    if trainer.aux_loss_enabled:
        return "router_aux_loss_coef adds the routers' loss over the batch -> set it to 0"
    if trainer._is_vision_dataset:
        return "images in the train dataset: which of them are a row's is not known -> take a dataset of texts"
    return None
