"""The losses of the rows that a selector chooses from: those of the model now, or those that training has seen.

    scores: fresh                  one pass over all rows at each update
    scores: seen                   no pass: the loss that training saw last of each row, however old
    scores: seen, max_age: STEPS   that, where it is at most so many optimizer steps old; a pass over the other rows

A row that training has not seen yet has no seen loss. It must be reachable all the same, so selectors give it the
weight of a row that they want most, until it is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from dataflex.core.context import SEEN_ONLY, PassOptions, RowScores, RunAhead
from dataflex.core.cost import NOTHING, Ahead, Cost, Work
from dataflex.core.errors import ComponentError, Problem
from dataflex.core.parameter_checks import count, count_or_null, flag, one_of, stated
from dataflex.rows.columns import labelled_rows
from dataflex.scoring import per_sample_losses
from dataflex.scoring.score_sources import loss_store
from dataflex.scoring.trial import try_losses
from dataflex.train.selector.base_selector import Selector
from numpy.typing import NDArray

from dataflex_selectors.parts.enough import SHOW_LABELS, require_labelled

if TYPE_CHECKING:
    import torch

SCORES = ("fresh", "seen")


def max_age_problem(scores: Any, max_age: Any) -> Problem | None:
    """Returns a problem unless ``max_age`` is a number of steps, 0 for none, and belongs to ``scores: seen``."""
    problem = count("max_age", max_age, least=0)
    if problem is None and max_age and scores == "fresh":
        what = f"found {max_age}, but scores: fresh computes every loss"
        return Problem("max_age", what, "set scores: seen to take losses of at most that age, or max_age: 0")
    return problem


class RowLosses:
    """Where a selector's losses come from.

    Args:
        selector: The selector; its dataset, collator and accelerator make a pass where the run shares no scores.
        scores: One of :data:`SCORES`.
        max_age: Most optimizer steps that a seen loss may be old; 0 for any age.
        token_budget: Tokens that are scored at once; None for a default that suits the device.
        keeps: Whether an interrupted pass is kept in the selector's ``cache_dir``.
        without_seen: What to do where seen losses are wanted and there are none.
    """

    def __init__(
        self,
        selector: Selector,
        scores: str,
        max_age: int,
        token_budget: int | None,
        keeps: bool = False,
        without_seen: str = "set scores: fresh",
    ) -> None:
        self._without_seen = without_seen
        self._selector, self._token_budget, self._keeps = selector, token_budget, keeps
        self.are_seen = scores == "seen"
        self._max_age = max_age or SEEN_ONLY
        self._labelled: NDArray[np.bool_] | None = None

    def now(self, model: torch.nn.Module, step_id: int, shared: RowScores | None) -> NDArray[np.float32]:
        """Returns the losses that rows are chosen by: (N,), NaN without a label, and where never seen. Collective.

        Args:
            model: The model, as the selector gets it.
            step_id: Optimizer steps done.
            shared: The run's scores, of the update's context.

        Raises:
            ComponentError: Seen losses are wanted, and the run has none for the selector's rows.
        """
        if not self.are_seen:
            return self.fresh(model, step_id, shared)
        if not self._is_shared(shared):
            raise ComponentError(
                "scores: seen takes the losses that training has seen, and there are none for these rows -> "
                f"{self._without_seen}"
            )
        assert shared is not None
        return shared.of("loss", max_age=self._max_age, how=self._options()).astype(np.float32)

    def fresh(self, model: torch.nn.Module, step_id: int, shared: RowScores | None) -> NDArray[np.float32]:
        """Returns the losses under the model now: (N,), NaN without a label. See :meth:`now`."""
        if self._is_shared(shared):
            assert shared is not None
            return shared.of("loss", how=self._options()).astype(np.float32)
        selector = self._selector
        return per_sample_losses(
            model,
            selector.dataset,
            collator=selector.data_collator,
            accelerator=selector.accelerator,
            token_budget=self._token_budget,
            desc=f"{selector.name}: losses at step {step_id}",
            store=loss_store(model, selector.dataset, selector.accelerator, None, step_id, self._options()),
        )

    def unseen(self, losses_N: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """Returns which rows have labels to learn from and no loss yet: (N,)."""
        missing_N: NDArray[np.bool_] = np.isnan(losses_N)
        if not missing_N.any():
            return missing_N
        if self._labelled is None:  # the rows stay the same all through the run
            self._labelled = np.zeros(len(losses_N), dtype=np.bool_)
            self._labelled[labelled_rows(self._selector.dataset)] = True
        return np.asarray(missing_N & self._labelled)

    def _is_shared(self, shared: RowScores | None) -> bool:
        """Whether the run's scores are those of the selector's own rows: somebody may have made it for others."""
        return shared is not None and shared.are_of(self._selector.dataset)

    def _options(self) -> PassOptions:
        cache_dir = self._selector.cache_dir if self._keeps else ""
        return PassOptions(self._token_budget, self._selector.name, cache_dir, self._selector.cache_owner)


class ByLosses(Selector):
    """Base of selectors that draw rows by their losses.

    Args:
        replacement: Whether a row may come more than once in a stretch.
        token_budget: Tokens that are scored at once; null for a default that suits the device.
        scores: fresh computes the losses of all rows at each update; seen takes those that training saw last.
        max_age: With seen: losses of more optimizer steps ago are computed, and those never seen; 0 for no pass at all.
        **run: What every selector is given, see :class:`~dataflex.interfaces.selector.Selector`.

    Attributes:
        keeps_losses: Whether an interrupted pass is kept in ``cache_dir``.
        problems: What is wrong with these parameters: the derived class gives it to
            :func:`~dataflex.core.parameter_checks.require`, with what is wrong with its own.
    """

    reads_batches = True
    keeps_losses: ClassVar[bool] = False

    def __init__(
        self,
        *,
        replacement: bool = False,
        token_budget: int | None = None,
        scores: str = "fresh",
        max_age: int = 0,
        **run: Any,
    ) -> None:
        super().__init__(**run)
        self.problems = stated(
            flag("replacement", replacement),
            count_or_null("token_budget", token_budget),
            one_of("scores", scores, SCORES),
            max_age_problem(scores, max_age),
        )
        self.replacement = replacement
        self._losses = RowLosses(self, scores, max_age, token_budget, self.keeps_losses)
        self.takes_seen = self._losses.are_seen

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """One forward pass over the rows whose loss is not taken from training. See the base class."""
        seen, max_age = params["scores"] == "seen", params["max_age"]
        rows = NOTHING if seen and not max_age else ahead.unseen(max_age) if seen else ahead.rows
        kept = 4 * ahead.rows.rows if cls.keeps_losses else 0
        return Cost(Work(losses=rows), host_bytes=12 * ahead.rows.rows, cache_bytes=kept)

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses too few rows with a label, and a model that gives rows no loss. See the base class."""
        wanted = min(run.most_rows, 1) if self.replacement else run.most_rows
        require_labelled(self.dataset, wanted, f"{SHOW_LABELS}, replacement: true")
        try_losses(model, self.dataset, self.data_collator, self.accelerator)
