"""Weights of tokens that are known before training: placed in the batches of a step, and divided by their mean.

A strategy says what the weights of a row are; this is what is the same for all of them.

Letters: B rows of a micro-batch, T tokens, n tokens of a row, X rows that are named.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from dataflex.core.ranks.by_row import sum_over_ranks
from dataflex.train.weighter.base_weighter import StepContext, Weighter
from numpy.typing import NDArray

from dataflex_weighters.parts.token_places import before_labels, on_host, placed_numbers

DENOMINATORS = ("weights", "tokens")


class GivenTokenWeights(Weighter):
    """A weighter of tokens whose weights stand in the data.

    Args:
        dataset: The train dataset, tokenised.
        denominator: ``weights``: the loss of a step is divided by the sum of their weights; ``tokens``: by the number
            of tokens that are trained on, so that weights of 0.5 throughout halve the gradient.
    """

    draws = False
    weighs_tokens = True
    asks = "losses of tokens"

    def __init__(self, dataset: Any, denominator: str) -> None:
        super().__init__()
        self.dataset, self.denominator = dataset, denominator
        self._placed: list[torch.Tensor] = []  # (B, T) of each micro-batch of the present step

    @abstractmethod
    def weights_of(self, rows_X: NDArray[np.int64]) -> Sequence[NDArray[np.floating[Any]]]:
        """Returns the weights of some rows: for each (n,) numbers, one for each of its tokens."""

    def mean_token_weight(self, batches: Sequence[Any], *, ctx: StepContext) -> float:
        """Looks up the weights of the step, and returns what its loss is divided by. Collective."""
        found = on_host(batches)
        placed = [placed_numbers(batch, self.dataset, self.weights_of, "the weights of tokens") for batch in found]
        self._placed = [before_labels(weights_BT, ctx.accelerator.device) for weights_BT in placed]
        if self.denominator == "tokens":
            return 1.0
        sums = [
            (w_BT[b.predicted].sum(dtype=np.float64), b.predicted.sum()) for w_BT, b in zip(placed, found, strict=True)
        ]
        total, tokens = sum_over_ranks(np.array(sums, dtype=np.float64).sum(axis=0), ctx.accelerator)
        return float(total / tokens) if tokens else 0.0

    def token_weights(self, losses_BT: torch.Tensor, *, ctx: StepContext, model: Any, inputs: Any) -> torch.Tensor:
        """Returns z: (B, T), as the data has it. See the base class."""
        return self._placed[ctx.micro_batch]

    def get_weighted_loss(self, losses: torch.Tensor, *, ctx: Any = None, model: Any = None, inputs: Any = None) -> Any:
        """Returns the plain mean: samples have no weights beside those of their tokens. See the base class."""
        return losses.mean()
