"""The base class of selectors that compare rows of the train dataset with those of a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.errors import ConfigError
from dataflex.core.explain import MOST_PULLS, Explanation, sample_note, sampled_targets
from dataflex.core.parameter_checks import stated
from dataflex.rows.views import MixedSources
from dataflex.scoring import read_target
from dataflex.scoring.target_rows import UsableRows
from dataflex.utils.logging import logger
from numpy.typing import NDArray

from dataflex_selectors.parts.embeds_rows import EmbedsRows
from dataflex_selectors.parts.named_pulls import explained

if TYPE_CHECKING:
    import torch


class ToTarget(EmbedsRows):
    """Base of selectors that embed the train dataset and the evaluation sets. Its methods are collective.

    Args:
        eval_dataset: The target: a tokenised dataset, or several by name, whose rows are all queries.
        **run: How rows are embedded, and what every selector is given: see :class:`EmbedsRows`.

    Attributes:
        problems: What is wrong with these parameters: the derived class gives it to
            :func:`~dataflex.core.parameter_checks.require`, with what is wrong with its own, and then calls
            :meth:`aim`.
        target_sets: The evaluation sets by name, without rows that the embedding cannot read.
    """

    def __init__(self, *, eval_dataset: Any, **run: Any) -> None:
        super().__init__(**run)
        self._asked = read_target(eval_dataset)
        self.problems = stated(self._asked.problem, *self.problems)

    def aim(self) -> None:
        """Leaves out the rows of the target that the embedding cannot read.

        Called once, by the constructor of the derived class.

        Raises:
            ConfigError: A set has no row to compare with.
        """
        self.target_sets = {name: self._readable(name, rows) for name, rows in self._asked.sets.items()}
        self._target = MixedSources(self.target_sets)

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
