"""The training loss with a weight on each source: the objective of a mixer that also weighs.

With v_d the weight of source d, c_t the loss of token t, over all micro-batches and ranks of a step:

    L = sum_t v_d(t) c_t / sum_t v_d(t)

so doubling v_d doubles the share of source d in the gradient, and neither accumulation nor the number of ranks matters.
Equal weights are the plain loss, computed by the plain function. The model's own loss function is replaced; what is
around it (auxiliary losses, accumulation, the average over ranks) stays what ``transformers`` does.

Letters: B rows of a micro-batch, T tokens, V vocabulary, K sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # the field's name for it
from numpy.typing import NDArray
from peft import PeftModel
from transformers import PreTrainedModel

from dataflex.core.errors import ComponentError, ConfigError
from dataflex.core.parameter_checks import FLOAT32_MOST
from dataflex.scoring.label_logits import IGNORED
from dataflex.train.trainer.domain_losses import DomainLosses, require_rows, summed_over_ranks

if TYPE_CHECKING:
    from accelerate import Accelerator

Weights = Callable[[], NDArray[np.float64]]


class DomainObjective:
    """Scales the loss of each token by the weight of its source.

    Args:
        model: The model; its loss function is replaced.
        losses: Knows the sources of the rows.
        weights: Returns (K,) v for the step that begins, the same on every rank.
        accelerator: The run's accelerator.
        accumulation: Micro-batches per step.
        averages_tokens: Whether the training loop counts the tokens of a step over all ranks.

    Raises:
        ConfigError: The model's loss cannot be replaced.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        losses: DomainLosses,
        weights: Weights,
        accelerator: Accelerator,
        accumulation: int,
        averages_tokens: bool,
    ) -> None:
        self._losses, self._weights, self._accelerator = losses, weights, accelerator
        self._accumulation, self._averages_tokens = accumulation, averages_tokens
        self._now_K: NDArray[np.float64] | None = None  # None: all alike
        self._total = 0.0
        self.used = False
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        if not isinstance(base, PreTrainedModel):
            raise ConfigError(
                f"the loss of {type(model).__name__} cannot be weighed -> use a model class of transformers"
            )
        self._plain = base.loss_function
        base.loss_function = self._loss

    def begin_step(self, batches: Sequence[Mapping[str, Any]], counts_first: bool) -> None:
        """Takes the weights of a step, whose batches have been handed out. Collective.

        Args:
            batches: This rank's micro-batches of the step.
            counts_first: Whether the plain loss is divided by all labels, the first token's included, which is never
                predicted; equal weights then give the plain loss.

        Raises:
            ComponentError: The weights are no finite, non-negative numbers.
        """
        weights_K = np.asarray(self._weights(), dtype=np.float64)
        if not ((weights_K >= 0) & (weights_K <= FLOAT32_MOST)).all():
            raise ComponentError(
                f"the loss weights are {weights_K.tolist()}; expected numbers from 0 to {FLOAT32_MOST:.3g}"
            )
        tokens_K: NDArray[np.float64] = np.zeros(len(weights_K))
        for batch, domains_B in zip(batches, self._losses.handed_out, strict=True):
            labels_BT = batch["labels"] if counts_first else batch["labels"][:, 1:]
            np.add.at(tokens_K, domains_B, (labels_BT != IGNORED).sum(dim=1).cpu().numpy())
        tokens_K = summed_over_ranks(tokens_K, self._accelerator)
        present_K = weights_K[tokens_K > 0]
        alike = len(present_K) == 0 or bool((present_K == present_K[0]).all())
        self._now_K = None if alike else weights_K
        self._total = float((weights_K * tokens_K).sum())

    def _loss(self, logits: Any, labels: Any, *args: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        """Stands in for the model's loss function."""
        self.used = True
        domains_B = self._losses.domains
        if domains_B is None or labels is None or self._now_K is None:
            return self._plain(logits, labels, *args, num_items_in_batch=num_items_in_batch, **kwargs)
        v_B = torch.from_numpy(self._now_K[domains_B]).to(logits.device, torch.float32)
        targets_BT = require_rows(logits, labels, len(v_B))
        return weighted_sum(logits, targets_BT, v_B) / (self._total / self._times(num_items_in_batch is not None))

    def _times(self, counted: bool) -> float:
        """Returns what the loop divides the loss by afterwards, so that the division by the total is all there is."""
        ranks = self._accelerator.num_processes
        if counted:  # the loop multiplies by the ranks itself where it counts tokens over all of them
            return 1.0 if self._averages_tokens else float(ranks)
        return float(ranks * self._accumulation)


def weighted_sum(logits_BTV: torch.Tensor, targets_BT: torch.Tensor, v_B: torch.Tensor) -> torch.Tensor:
    """Returns the sum over tokens of v c, a scalar with gradient.

    Args:
        logits_BTV: Raw logits of any float type.
        targets_BT: The token to predict at each position, -100 for none.
        v_B: (B,) the weight of each row's tokens.
    """
    logits_MV = logits_BTV.float().flatten(0, 1)
    c_M = F.cross_entropy(logits_MV, targets_BT.flatten(), ignore_index=IGNORED, reduction="none")
    return (c_M.view(targets_BT.shape) * v_B[:, None]).sum()
