"""The base class of selectors that compare rows by their vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from dataflex.core.context import RunAhead
from dataflex.core.parameter_checks import count, count_or_null, stated
from dataflex.core.ranks.agreement import from_rank_0
from dataflex.rows.columns import labelled_rows
from dataflex.scoring.embedder import Embedder, embedding_problems
from dataflex.train.selector.base_selector import Selector
from numpy.typing import NDArray

from dataflex_selectors.parts.enough import require_enough

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class EmbedsRows(Selector):
    """Base of selectors that embed the rows of the train dataset. Its methods are collective.

    Args:
        tokenizer: Turns tokens into text where a sentence-transformers model makes the embeddings.
        embedding: ngrams, model, or the name or path of a sentence-transformers model.
        dim: Buckets of the ngrams embedding.
        pooling: How the hidden states of the model become one vector: mean, last or weighted.
        refresh: With embedding: model, updates after which rows are embedded anew.
        token_budget: Tokens that the model embeds at once; null for a default that suits the device.
        **run: What every selector is given, see :class:`~dataflex.interfaces.selector.Selector`.

    Attributes:
        problems: What is wrong with these parameters: the derived class gives it to
            :func:`~dataflex.core.parameter_checks.require`, with what is wrong with its own.
        embedder: Makes the embeddings.
        refresh: Updates after which rows are embedded anew, where the embedding moves with training.
        device: Where vectors are compared; None for the CPU.
    """

    asks = "hidden states if embedding=model"
    reads_tokens = True

    def __init__(
        self,
        *,
        tokenizer: Any = None,
        embedding: str = "ngrams",
        dim: int = 1024,
        pooling: str = "mean",
        refresh: int = 1,
        token_budget: int | None = None,
        **run: Any,
    ) -> None:
        super().__init__(**run)
        self.embedder = Embedder(embedding, dim, pooling, token_budget, self.data_collator, self.accelerator, tokenizer)
        self.refresh = refresh
        self.device = None if self.accelerator is None else self.accelerator.device
        self.problems = stated(
            *embedding_problems(embedding, dim, pooling),
            count("refresh", refresh),
            count_or_null("token_budget", token_budget),
            self.embedder.without_tokenizer(),
        )
        self._says_something = self.embedder.says_something
        self._eligible: NDArray[np.int64] | None = None

    @property
    def reads_batches(self) -> bool:  # type: ignore[override]  # it depends on a parameter
        """Whether the embedding is the model's."""
        return self.embedder.moves

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses too few rows with a label, and a model without embeddings. See the base class."""
        wanted = min(run.most_rows, 1) if self.replacement else run.most_rows
        require_enough(max(1, wanted), len(self.eligible()), len(self.dataset))
        self.embedder.try_on(model, self.dataset, self.eligible()[:2])

    def is_due(self, last: int, update: int) -> bool:
        """Returns whether embeddings of the update ``last`` are too old at ``update``; -1 means there are none.

        Those of a later update are of an earlier training by the same trainer.
        """
        return last < 0 or (self.embedder.moves and not 0 <= update - last < self.refresh)

    def eligible(self) -> NDArray[np.int64]:
        """Returns the rows with tokens (or text) and a label, in row order: (n,). Looked up once.

        The others have no features, so no distance to another row.
        """
        if self._eligible is None:
            rows = labelled_rows(self.dataset)
            self._eligible = rows[self._says_something(self.dataset, rows)]
        return self._eligible

    def embedded(
        self, model: torch.nn.Module, step_id: int, rows: NDArray[np.int64], *, everywhere: bool = False
    ) -> NDArray[np.float32]:
        """Returns the vectors of rows of the train dataset: (N, D) of length 1; on rank 0 alone, or everywhere.

        They are the largest thing that a selector makes (a million of 4,096 numbers take 16 GB), and what is found with
        them is small: see :meth:`on_rank_0`.
        """
        desc = f"{self.name}: embedding rows at step {step_id}"
        return self.embedder.embed(model, self.dataset, rows, desc, everywhere=everywhere)

    def on_rank_0(self, asked: Callable[[], T]) -> T:
        """Returns on every rank what ``asked``, which rank 0 alone calls, returns there. Collective."""
        if self.accelerator is None:
            return asked()
        found: T = from_rank_0(self.accelerator, asked)
        return found
