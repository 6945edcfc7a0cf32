"""The base class of selectors that compare rows of the train dataset with those of a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from dataflex.core.context import RunAhead
from dataflex.core.errors import ConfigError
from dataflex.core.explain import MOST_PULLS, Explanation, sample_note, sampled_targets
from dataflex.core.parameter_checks import count, count_or_null, stated
from dataflex.core.ranks.agreement import from_rank_0
from dataflex.rows.columns import labelled_rows
from dataflex.rows.views import MixedSources
from dataflex.scoring import read_target
from dataflex.scoring.target_rows import UsableRows
from dataflex.train.selector.base_selector import Selector
from dataflex.utils.logging import logger
from numpy.typing import NDArray

from dataflex_selectors.parts.embedder import Embedder, embedding_problems
from dataflex_selectors.parts.enough import require_enough
from dataflex_selectors.parts.named_pulls import explained

if TYPE_CHECKING:
    import torch


T = TypeVar("T")


class ToTarget(Selector):
    """Base of selectors that embed the train dataset and the evaluation sets. Its methods are collective.

    Args:
        eval_dataset: The target: a tokenised dataset, or several by name, whose rows are all queries.
        tokenizer: Turns tokens into text where a sentence-transformers model makes the embeddings.
        embedding: ngrams, model, or the name or path of a sentence-transformers model.
        dim: Buckets of the ngrams embedding.
        pooling: How the hidden states of the model become one vector: mean, last or weighted.
        refresh: With embedding: model, updates after which rows are embedded anew.
        token_budget: Tokens that the model embeds at once; null for a default that suits the device.
        **run: What every selector is given, see :class:`~dataflex.interfaces.selector.Selector`.

    Attributes:
        problems: What is wrong with these parameters: the derived class gives it to
            :func:`~dataflex.core.parameter_checks.require`, with what is wrong with its own, and then calls
            :meth:`aim`.
        embedder: Makes the embeddings.
        refresh: Updates after which rows are embedded anew, where the embedding moves with training.
        device: Where neighbours are searched; None for the CPU.
        target_sets: The evaluation sets by name, without rows that the embedding cannot read.
    """

    asks = "hidden states if embedding=model"
    reads_tokens = True

    def __init__(
        self,
        *,
        eval_dataset: Any,
        tokenizer: Any = None,
        embedding: str = "ngrams",
        dim: int = 1024,
        pooling: str = "mean",
        refresh: int = 1,
        token_budget: int | None = None,
        **run: Any,
    ) -> None:
        super().__init__(**run)
        self._asked = read_target(eval_dataset)
        self.embedder = Embedder(embedding, dim, pooling, token_budget, self.data_collator, self.accelerator, tokenizer)
        self.refresh = refresh
        self.device = None if self.accelerator is None else self.accelerator.device
        self.problems = stated(
            self._asked.problem,
            *embedding_problems(embedding, dim, pooling),
            count("refresh", refresh),
            count_or_null("token_budget", token_budget),
            self.embedder.without_tokenizer(),
        )
        self._eligible: NDArray[np.int64] | None = None

    def aim(self) -> None:
        """Leaves out the rows of the target that the embedding cannot read.

        Called once, by the constructor of the derived class.

        Raises:
            ConfigError: A set has no row to compare with.
        """
        self._says_something = self.embedder.says_something
        self.target_sets = {name: self._readable(name, rows) for name, rows in self._asked.sets.items()}
        self._target = MixedSources(self.target_sets)

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
        """Returns whether embeddings of the update ``last`` are too old at ``update``; -1 means there are none."""
        return last < 0 or (self.embedder.moves and update - last >= self.refresh)

    def eligible(self) -> NDArray[np.int64]:
        """Returns the rows with tokens (or text) and a label, in row order: (n,). Looked up once.

        The others have no features, so no distance to a row of the target.
        """
        if self._eligible is None:
            rows = labelled_rows(self.dataset)
            self._eligible = rows[self._says_something(self.dataset, rows)]
        return self._eligible

    def _readable(self, name: str, dataset: Any) -> Any:
        """Returns the rows of a set that the embedding can read."""
        every = np.arange(len(dataset), dtype=np.int64)
        kept = every[self._says_something(dataset, every)]
        if len(kept) == len(dataset):
            return dataset
        if not len(kept):
            raise ConfigError(
                f"eval_dataset: no row of the evaluation set '{name}' has text besides special tokens -> check "
                "eval_dataset, or use embedding: ngrams or model"
            )
        logger.warning(
            "evaluation set '%s': %d of %d rows have no text and are left out", name, len(every) - len(kept), len(every)
        )
        return UsableRows(dataset, kept)

    def embedded_target(self, model: torch.nn.Module, step_id: int) -> NDArray[np.float32]:
        """Returns the vectors of all rows of the evaluation sets: (M, D) of length 1; on rank 0 alone."""
        every = np.arange(len(self._target), dtype=np.int64)
        desc = f"{self.name}: embedding the target at step {step_id}"
        return self.embedder.embed(model, self._target, every, desc, everywhere=False)

    def embedded(
        self, model: torch.nn.Module, step_id: int, rows: NDArray[np.int64], *, everywhere: bool = False
    ) -> NDArray[np.float32]:
        """Returns the vectors of rows of the train dataset: (N, D) of length 1; on rank 0 alone, or everywhere.

        They are the largest thing that a selector makes (a million of 4,096 numbers take 16 GB), and what is found with
        them is small: see :meth:`on_rank_0`.
        """
        desc = f"{self.name}: embedding rows at step {step_id}"
        return self.embedder.embed(model, self.dataset, rows, desc, everywhere=everywhere)

    def explained_by_place(
        self, places_SX: Sequence[Sequence[tuple[int, float]]], scores_S: NDArray[np.float64], note: str = ""
    ) -> Explanation:
        """Returns the explanation of rows by rows of the target, which are counted through all sets."""
        return explained(self._target, places_SX, scores_S, note)

    def explained_by_cosine(
        self,
        model: torch.nn.Module,
        step_id: int,
        rows_S: NDArray[np.int64],
        taker_S: Sequence[int],
        generator: np.random.Generator,
    ) -> Explanation:
        """Returns the rows of the target nearest to some rows, first the one that took each. Collective.

        Args:
            model: The model being trained.
            step_id: Global optimizer steps done.
            rows_S: (S,) rows of the train dataset.
            taker_S: For each, the row of the target, of all sets one after the other, that took it; -1 for none.
            generator: Draws a sample where the target has too many rows to embed them for this alone.
        """
        looked_at = sampled_targets(len(self._target), generator, [taker for taker in taker_S if taker >= 0])
        desc = f"{self.name}: explaining rows at step {step_id}"
        queries_MD = self.embedder.embed(model, self._target, looked_at, desc, everywhere=False)
        rows_SD = self.embedder.embed(model, self.dataset, rows_S, desc, everywhere=False)

        def compared() -> tuple[list[list[tuple[int, float]]], NDArray[np.float64]]:
            cosines_MS = queries_MD.astype(np.float64) @ rows_SD.T.astype(np.float64)
            found, scores_S = [], np.empty(len(rows_S))
            for row, taker in enumerate(taker_S):
                first = int(np.searchsorted(looked_at, taker) if taker >= 0 else cosines_MS[:, row].argmax())
                cosines_M, scores_S[row] = cosines_MS[:, row].copy(), cosines_MS[first, row]
                cosines_M[first] = np.inf  # first of all
                order = np.argsort(-cosines_M, kind="stable")[:MOST_PULLS]
                shares = [cosines_MS[place, row] / scores_S[row] for place in order] if scores_S[row] else []
                found.append([(int(looked_at[place]), float(s)) for place, s in zip(order, shares, strict=False)])
            return found, scores_S

        places_SX, scores_S = self.on_rank_0(compared)
        return self.explained_by_place(places_SX, scores_S, sample_note(len(looked_at), len(self._target)))

    def on_rank_0(self, asked: Callable[[], T]) -> T:
        """Returns on every rank what ``asked``, which rank 0 alone calls, returns there. Collective."""
        if self.accelerator is None:
            return asked()
        found: T = from_rank_0(self.accelerator, asked)
        return found
