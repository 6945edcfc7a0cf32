"""What the selectors have in common that compare rows of the train dataset with those of a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.errors import Problem
from dataflex.core.parameter_checks import count, require
from dataflex.data.rows import MixedSources
from dataflex.train.selector.base_selector import Selector
from numpy.typing import NDArray

from dataflex_selectors.columns import labelled_rows
from dataflex_selectors.embed import Embedder
from dataflex_selectors.neighbours import backend_problem
from dataflex_selectors.targets import has_target, target_sets

if TYPE_CHECKING:
    import torch


class ToTarget(Selector):
    """Base of selectors that embed the train dataset and the evaluation sets. Its methods are collective.

    Attributes:
        embedder: Makes the embeddings.
        refresh: Updates after which rows are embedded anew, where the embedding moves with training.
        backend: What searches for neighbours.
        device: Where that happens; None for the CPU.
    """

    def aim(
        self,
        selector: str,
        eval_dataset: Any,
        embedder: Embedder,
        refresh: int,
        *others: Problem | None,
        backend: str = "torch",
    ) -> None:
        """Checks and keeps the parameters that these selectors share. Called once, by the constructor.

        Args:
            selector: The name of the selector, for the message.
            eval_dataset: The target: a tokenised dataset, or several by name, whose rows are all queries.
            embedder: Made of the selector's parameters, which are checked here.
            refresh: Updates after which rows are embedded anew.
            *others: What is wrong with the selector's own parameters.
            backend: See :mod:`dataflex_selectors.neighbours`.

        Raises:
            ConfigError: With everything that is wrong.
        """
        require(
            f"{selector} selector",
            has_target(eval_dataset),
            *embedder.problems(),
            count("refresh", refresh),
            *others,
            backend_problem(backend),
        )
        self.embedder = embedder
        self.refresh = refresh
        self.backend = backend
        self.device = None if self.accelerator is None else self.accelerator.device
        self._target = MixedSources(target_sets(eval_dataset))
        self._eligible: NDArray[np.int64] | None = None

    def is_due(self, last: int, update: int) -> bool:
        """Returns whether embeddings of the update ``last`` are too old at ``update``; -1 means there are none."""
        return last < 0 or (self.embedder.moves and update - last >= self.refresh)

    def eligible(self) -> NDArray[np.int64]:
        """Returns the rows with a label, in row order: (n,). Looked up once."""
        if self._eligible is None:
            self._eligible = labelled_rows(self.dataset)
        return self._eligible

    def embedded_target(self, model: torch.nn.Module, step_id: int) -> NDArray[np.float32]:
        """Returns the vectors of all rows of the evaluation sets: (M, D) of length 1."""
        every = np.arange(len(self._target), dtype=np.int64)
        return self.embedder.embed(model, self._target, every, f"{self.name}: embedding the target at step {step_id}")

    def embedded(self, model: torch.nn.Module, step_id: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the vectors of rows of the train dataset: (N, D) of length 1."""
        return self.embedder.embed(model, self.dataset, rows, f"{self.name}: embedding rows at step {step_id}")
