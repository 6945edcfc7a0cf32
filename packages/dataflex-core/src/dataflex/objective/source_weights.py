"""The training loss with a weight on each source: the objective of a mixer that also weighs.

With v_d the weight of source d, c_t the loss of token t, over all micro-batches and ranks of a step:

    L = sum_t v_d(t) c_t / sum_t v_d(t)

so doubling v_d doubles the share of source d in the gradient, and neither accumulation nor the number of ranks matters.
Where the weights are equal and the loop computes that mean itself, the plain loss is computed, operation for operation.
What is around the loss (auxiliary losses, accumulation, the average over ranks) stays what ``transformers`` does.

Letters: B rows of a micro-batch, T tokens, V vocabulary, K sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.errors import ComponentError
from dataflex.core.parameter_checks import FLOAT32_MOST
from dataflex.objective.formula import losses_of_tokens, predicted
from dataflex.objective.loop_scale import counts_first, loop_of, undone
from dataflex.objective.loss_function import ReplacedLoss
from dataflex.objective.measured import DomainLosses, require_rows
from dataflex.objective.token_losses import CROSS_ENTROPY, TokenLoss
from dataflex.scoring.gather import sum_over_ranks
from dataflex.scoring.label_logits import IGNORED

if TYPE_CHECKING:
    from transformers import Trainer

Weights = Callable[[], NDArray[np.float64]]


class DomainObjective:
    """Scales the loss of each token by the weight of its source.

    Args:
        trainer: The trainer, with its model not yet wrapped; its loss is replaced.
        losses: Knows the sources of the rows.
        weights: Returns (K,) v for the step that begins, the same on every rank.
        dft: Whether the trainer's ``compute_loss_func``, where it has one, is the DFT loss.

    Raises:
        ConfigError: The model's loss cannot be replaced.
    """

    def __init__(self, trainer: Trainer, losses: DomainLosses, weights: Weights, dft: bool) -> None:
        self._trainer, self._losses, self._weights = trainer, losses, weights
        self._now_K: NDArray[np.float64] = np.zeros(0)
        self._alike = True
        self._totals = (0.0, 0.0)  # sum of v over the labels of the step, and over those that are predicted
        self._micro_batches = 0
        self._counted = False
        self.used = False
        self.replaced = ReplacedLoss(trainer, self._loss, dft)

    def begin_step(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Takes the weights of a step, whose batches have been handed out. Collective.

        Args:
            batches: This rank's micro-batches of the step.

        Raises:
            ComponentError: The weights are no numbers of 0 or more that 32 bits hold.
        """
        weights_K = np.asarray(self._weights(), dtype=np.float64)
        if not ((weights_K >= 0) & (weights_K <= FLOAT32_MOST)).all():
            raise ComponentError(
                f"the loss weights are {weights_K.tolist()}; expected numbers from 0 to {FLOAT32_MOST:.3g}"
            )
        tokens_2K: NDArray[np.float64] = np.zeros((2, len(weights_K)))
        counts = []
        for batch, _ in zip(batches, self._losses.handed_out, strict=True):
            found = (batch["labels"] != IGNORED, predicted(batch["labels"]))
            counts.append(torch.stack([found_BT.sum(dim=1) for found_BT in found]))
        if counts:
            domains_X = np.concatenate(self._losses.handed_out)
            np.add.at(tokens_2K.T, domains_X, torch.cat(counts, dim=1).cpu().numpy().T)  # waits once a step
        tokens_2K = sum_over_ranks(tokens_2K, self._trainer.accelerator)
        present_K = weights_K[tokens_2K[0] > 0]
        self._alike = len(present_K) == 0 or bool((present_K == present_K[0]).all())
        self._now_K = np.ones_like(weights_K) if self._alike else weights_K
        labels, those_predicted = (tokens_2K @ self._now_K).tolist()
        self._totals, self._micro_batches = (labels, those_predicted), len(batches)

    def begin(self, counted: bool) -> None:
        """A micro-batch is trained on from here.

        Args:
            counted: Whether the loop gave the number of the step's labels.
        """
        self._counted = counted

    def of_tokens(self, losses_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor | None:
        """Returns the micro-batch's part of L from the losses of its tokens; None where that is the plain loss.

        Args:
            losses_BT: (B, T) cross entropies at the position before each label, 0 where there is none.
            labels_BT: Labels before the shift.
        """
        found = self._factors(losses_BT[..., None], labels_BT, CROSS_ENTROPY)
        return None if found is None else (losses_BT * found[0][:, None]).sum() * found[1]

    def _loss(self, logits: Any, labels: Any, token_loss: TokenLoss) -> torch.Tensor | None:
        """Returns the micro-batch's part of L; None where that is the plain loss."""
        found = self._factors(logits, labels, token_loss)
        if found is None:
            return None
        return weighted_sum(logits, labels.to(logits.device), found[0], token_loss) * found[1]

    def _factors(self, logits: Any, labels: Any, token_loss: TokenLoss) -> tuple[torch.Tensor, float] | None:
        """Returns v of each row, and what the sum over tokens is multiplied by; None where that is the plain loss."""
        self.used = True
        domains_B = self._losses.domains
        if domains_B is None:
            return None
        by_step = self._counted and token_loss.counts_first and self.replaced.takes_count
        first = by_step and counts_first(self._trainer)
        scale = undone(loop_of(self._trainer, self._counted, self._micro_batches))
        if self._alike and by_step and scale == 1:  # the loss is divided by the labels of the step, as here
            return None
        v_B = torch.from_numpy(self._now_K[domains_B].astype(np.float32)).to(logits.device, non_blocking=True)
        require_rows(logits, labels, len(v_B))
        total = self._totals[0 if first else 1]
        return v_B, scale / total if total > 0 else 0.0


def weighted_sum(
    logits_BTV: torch.Tensor, labels_BT: torch.Tensor, v_B: torch.Tensor, token_loss: TokenLoss
) -> torch.Tensor:
    """Returns the sum over tokens of v c, a scalar with gradient.

    Args:
        logits_BTV: Raw logits of any float type.
        labels_BT: Labels before the shift; -100 is ignored.
        v_B: (B,) the weight of each row's tokens.
        token_loss: What a token costs.
    """
    losses_BT, _ = losses_of_tokens(logits_BTV, labels_BT, token_loss)
    return (losses_BT * v_B[:, None]).sum()
