"""The losses of a pair of answers that TRL's ``loss_type`` names, each a pure function of what a batch's pairs are.

Letters: B pairs. A ratio is the log probability of an answer under the policy less that under the reference; with
another divergence than the reverse KL, a score takes its place where a paper has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Pairs:
    """The pairs of a batch.

    Attributes:
        chosen: (B,) log ratios of the chosen answers.
        rejected: (B,) log ratios of the rejected ones.
        chosen_score: (B,) the ratios under the divergence of the run.
        rejected_score: (B,) the same of the rejected answers.
        chosen_tokens: (B,) tokens of the chosen answers.
        rejected_tokens: (B,) tokens of the rejected ones.
        chosen_nll: () mean loss of all tokens of the batch's chosen answers.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_score: torch.Tensor
    rejected_score: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor
    chosen_nll: torch.Tensor

    @property
    def margin(self) -> torch.Tensor:
        """(B,) by how much the chosen answer's score is the higher one."""
        return self.chosen_score - self.rejected_score

    @property
    def margin_per_token(self) -> torch.Tensor:
        """(B,) the margin of the scores' means over tokens."""
        chosen_B = self.chosen_score / self.chosen_tokens.clamp(min=1)
        return chosen_B - self.rejected_score / self.rejected_tokens.clamp(min=1)


@dataclass(frozen=True)
class Settings:
    """What the losses are given.

    Attributes:
        beta: How much the policy is held to the reference.
        smoothing: The share of pairs that are taken to be the wrong way round.
        tau: The temperature of ``discopop``.
    """

    beta: float
    smoothing: float
    tau: float


def divergent(ratios_B: torch.Tensor, divergence: str, alpha: float) -> torch.Tensor:
    """Returns the scores of log ratios under a divergence (f-DPO, 2309.16240): f'(t) at t = exp(ratio), (B,).

    Args:
        ratios_B: (B,) log ratios.
        divergence: ``reverse_kl``, ``forward_kl``, ``js_divergence`` or ``alpha_divergence``.
        alpha: Of the last; at 1 it is the reverse KL.
    """
    if divergence == "forward_kl":
        return 1 - torch.exp(-ratios_B)
    if divergence == "js_divergence":
        return math.log(2) + logsigmoid(ratios_B)
    if divergence == "alpha_divergence" and abs(alpha - 1) >= 1e-6:
        most = 11.0 if ratios_B.dtype is torch.float16 else 80.0  # beyond it exp leaves the type
        powers_B = torch.exp(torch.clamp(((alpha - 1) * ratios_B).float(), max=most))
        return (powers_B - 1).to(ratios_B.dtype) / (alpha - 1)
    return ratios_B


def sigmoid(pairs: Pairs, s: Settings) -> torch.Tensor:
    """DPO (2305.18290), equation 7."""
    return -logsigmoid(s.beta * pairs.margin)


def hinge(pairs: Pairs, s: Settings) -> torch.Tensor:
    """SLiC (2305.10425), normalised by the reference as in RSO (2309.06657)."""
    return torch.relu(1 - s.beta * pairs.margin)


def ipo(pairs: Pairs, s: Settings) -> torch.Tensor:
    """IPO (2310.12036), equation 17, with means over tokens."""
    return (pairs.margin_per_token - 1 / (2 * s.beta)) ** 2


def exo_pair(pairs: Pairs, s: Settings) -> torch.Tensor:
    """EXO (2402.00856), equation 16: the KL of the policy's choice to the smoothed label."""
    logits_B = s.beta * pairs.margin
    right_B = torch.sigmoid(logits_B) * (logsigmoid(logits_B) - math.log1p(-s.smoothing))
    return right_B + torch.sigmoid(-logits_B) * (logsigmoid(-logits_B) - math.log(s.smoothing))


def nca_pair(pairs: Pairs, s: Settings) -> torch.Tensor:
    """NCA (2402.05369), for two answers."""
    chosen_B, rejected_B = s.beta * pairs.chosen, s.beta * pairs.rejected
    return -logsigmoid(chosen_B) - (logsigmoid(-chosen_B) + logsigmoid(-rejected_B)) / 2


def robust(pairs: Pairs, s: Settings) -> torch.Tensor:
    """Robust DPO (2403.00409): the noisy loss, made unbiased."""
    logits_B = s.beta * pairs.margin
    kept_B = (1 - s.smoothing) * logsigmoid(logits_B)
    return -(kept_B - s.smoothing * logsigmoid(-logits_B)) / (1 - 2 * s.smoothing)


def bco_pair(pairs: Pairs, s: Settings) -> torch.Tensor:
    """BCO (2404.04656) on pairs, without its moving mean."""
    return -logsigmoid(s.beta * pairs.chosen) - logsigmoid(-s.beta * pairs.rejected)


def sppo_hard(pairs: Pairs, s: Settings) -> torch.Tensor:
    """SPPO (2405.00675), equation 4.7, the chosen answer winning always."""
    return (pairs.chosen - 0.5 / s.beta) ** 2 + (pairs.rejected + 0.5 / s.beta) ** 2


def apo_zero(pairs: Pairs, s: Settings) -> torch.Tensor:
    """APO-zero (2408.06266), equation 7."""
    return torch.sigmoid(-s.beta * pairs.chosen) + torch.sigmoid(s.beta * pairs.rejected)


def apo_down(pairs: Pairs, s: Settings) -> torch.Tensor:
    """APO-down (2408.06266), equation 8."""
    apart_B = pairs.chosen - pairs.rejected
    return torch.sigmoid(s.beta * pairs.chosen) + torch.sigmoid(-s.beta * apart_B)


def discopop(pairs: Pairs, s: Settings) -> torch.Tensor:
    """DiscoPOP (2406.08414), equation 5: the logistic loss and the exponential one, mixed by the log ratio."""
    logits_B = s.beta * pairs.margin
    exponential_B = torch.sigmoid(logits_B / s.tau)
    return -logsigmoid(logits_B) * (1 - exponential_B) + torch.exp(-logits_B) * exponential_B


def sigmoid_norm(pairs: Pairs, s: Settings) -> torch.Tensor:
    """DPO with means over tokens."""
    return -logsigmoid(s.beta * pairs.margin_per_token)


def sft(pairs: Pairs, s: Settings) -> torch.Tensor:
    """The mean loss of the batch's chosen tokens, the same for each pair."""
    return pairs.chosen_nll.expand(len(pairs.chosen))


PAIR_LOSSES: dict[str, Callable[[Pairs, Settings], torch.Tensor]] = {
    loss.__name__: loss
    for loss in (
        sigmoid, hinge, ipo, exo_pair, nca_pair, robust, bco_pair, sppo_hard, apo_zero, apo_down, discopop,
        sigmoid_norm, sft,
    )
}  # fmt: skip
"""``loss_type`` -> loss. ``aot`` and ``aot_unpaired`` sort the answers of a batch: pairs have no loss of their own."""
