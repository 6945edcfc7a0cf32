"""ICONS: the rows that many tasks want, each task having one vote for each row of its own best.

Wu et al. 2025, ICONS: Influence Consensus for Vision-Language Data Selection, arXiv 2501.00654. Influence of each row
on each task, as in LESS (see less.py) -> each task votes for the rows of its top share -> the rows with most votes.

    s_k(z) = mean over z' in task k of cos(grad l(z'), step(z))          specialist: the influence on one task
    t_k    = the (1 - P) quantile of s_k, linear between two rows        P: vote_share
    v(z)   = number of tasks k with s_k(z) >= t_k                        generalist: the consensus

A task that is a group of evaluation sets (``task_groups``) has the highest of their scores as its own, as the authors'
program takes the sub-tasks of MME. Of equal votes the higher mean influence over the tasks decides, then the row
number: whatever is equal there is as good as chosen by hand, so it must at least come out the same each time. Rejected:
the order that an unstable sort leaves (the authors') or that torch.topk does (OpenDCAI/DataFlex).

Cost: that of LESS. ``combine: mean`` is the authors' specialist program: all target rows count alike, whatever their
task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.cost import Ahead, Cost
from dataflex.core.errors import Problem
from dataflex.core.explain import Explanation
from dataflex.core.parameter_checks import between, count_or_null, one_of, require, share
from dataflex.core.registry import register_selector
from dataflex.scoring import TargetSet, read_target
from dataflex.scoring.trial import try_gradients
from dataflex.train.selector.base_selector import Selection
from dataflex.utils.logging import logger
from numpy.typing import NDArray

from dataflex_selectors.parts.candidates import candidate_rows
from dataflex_selectors.parts.enough import SHOW_LABELS, require_candidates, require_enough, require_labelled
from dataflex_selectors.parts.finite_scores import scored_places
from dataflex_selectors.parts.gradient_scores import (
    ComparesSteps,
    GradientScores,
    GradientSettings,
    gradient_cost,
)
from dataflex_selectors.parts.ranking import first_places
from dataflex_selectors.parts.running_scores import RunningScores
from dataflex_selectors.parts.task_sets import (
    boundaries_problem,
    empty_problem,
    groups_problem,
    rows_problem,
    split,
    task_places,
    task_scores,
)

if TYPE_CHECKING:
    import torch

COMBINES = ("votes", "mean")
TOP_SHARE = 0.2
"""P of the paper, where no update says how many rows are asked for."""


def threshold(scores_M: NDArray[np.float64], top_share: float) -> float:
    """Returns the score from which on a row is in the top share: the (1 - P) quantile, linear between two scores.

    The quantile's place (M - 1)(1 - P) is a whole number wherever it should be one: by binary rounding it may come out
    a hair above, and the row that stands there would lose its vote.

    Args:
        scores_M: (M,) finite scores, M >= 1.
        top_share: P, above 0 and at most 1.
    """
    place = (len(scores_M) - 1) * (1.0 - top_share)
    if abs(place - round(place)) < 1e-9 * len(scores_M):
        place = float(round(place))
    low = int(place)
    high = min(low + 1, len(scores_M) - 1)
    ordered = np.partition(scores_M, [low, high])
    return float(ordered[low] + (place - low) * (ordered[high] - ordered[low]))


def vote_counts(scores_NK: NDArray[np.float64], top_share: float) -> NDArray[np.int64]:
    """Returns how many tasks have each row in their top share: (N,) in [0, K].

    A row with NaN for a task has no vote of it, and the task goes by the others.

    Args:
        scores_NK: (N, K) scores for each task.
        top_share: P: the share of the rows that a task votes for; rows equal to the last of them are voted for too.
    """
    votes_N = np.zeros(len(scores_NK), dtype=np.int64)
    for scores_N in scores_NK.T:
        known_N = np.isfinite(scores_N)
        if known_N.any():
            votes_N += known_N & (np.where(known_N, scores_N, -np.inf) >= threshold(scores_N[known_N], top_share))
    return votes_N


def consensus(scores_NK: NDArray[np.float64], top_share: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns the votes of each row and what decides between equal ones, its mean score: (N,) each; NaN without one."""
    return vote_counts(scores_NK, top_share), np.asarray(scores_NK.mean(axis=1))


def mean_over_rows(scores_NJ: NDArray[np.float64], rows_J: Sequence[int]) -> NDArray[np.float64]:
    """Returns the mean over all target rows together: (N,), a set of more rows counting for more."""
    return np.asarray(scores_NJ @ (np.asarray(rows_J, dtype=np.float64) / sum(rows_J)))


@register_selector("icons")
class IconsSelector(ComparesSteps):
    """Takes the rows that most tasks have among those whose training step lowers their loss most.

    Args:
        eval_dataset: The tasks: tokenised datasets by name, each a task; or a single one.
        vote_share: The share of the rows that each task votes for; null for the share that is asked for.
        combine: votes takes the rows with most votes; mean those with the highest mean influence over all target rows.
        task_groups: Name of a task -> evaluation sets that are one task, with the highest of their scores; null for
            none.
        task_boundaries: Rows of each task, where a single evaluation set holds them one after the other; null for one
            task.
        gradient_type: adam compares the step that the optimizer would take, with its epsilon where torch has it
            (Adam, AdamW, NAdam, RAdam); sgd the gradient itself.
        proj_dim: Sketch gradients to this many numbers, which saves memory where there are many tasks; null compares
            them whole.
        factor_dim: Keep this many dimensions of each side of a large matrix's gradient, for training the whole model;
            null keeps all of them.
        decay: Factor on the influence of earlier updates, at each update; 0 forgets it, as both programs do.
        candidates: Rows drawn afresh at each update to choose from; null for all.
        token_budget: Tokens that are scored at once; null for a default that suits the device.
        **run: What every selector is given; ``cache_dir`` keeps what a long scoring pass has computed, so that an
            interrupted run goes on from there.

    Raises:
        ConfigError: A parameter is out of its range, there is no evaluation set, or tasks do not fit the sets; the
            message holds all of it.
    """

    def __init__(
        self,
        *,
        eval_dataset: Any,
        vote_share: float | None = None,
        combine: str = "votes",
        task_groups: Mapping[str, Sequence[str]] | None = None,
        task_boundaries: Sequence[int] | None = None,
        gradient_type: str = "sgd",
        proj_dim: int | None = None,
        factor_dim: int | None = None,
        decay: float = 0.0,
        candidates: int | None = None,
        token_budget: int | None = None,
        **run: Any,
    ) -> None:
        super().__init__(**run)
        settings = GradientSettings(gradient_type, proj_dim, token_budget, factor_dim)
        target = read_target(eval_dataset)
        require(
            "icons selector",
            target.problem,
            None if vote_share is None else share("vote_share", vote_share),
            one_of("combine", combine, COMBINES),
            groups_problem(task_groups),
            *_of_votes_alone(combine, vote_share=vote_share, task_groups=task_groups),
            boundaries_problem(task_boundaries),
            rows_problem(task_boundaries, eval_dataset),
            *settings.problems(),
            between("decay", decay, 0, 1),
            count_or_null("candidates", candidates, null="all"),
        )
        sets = split(target.sets, task_boundaries)
        require("icons selector", empty_problem(sets), groups_problem(task_groups, tuple(sets)))
        whole = "" if task_boundaries is None else next(iter(target.sets))
        self.targets = [TargetSet(name, rows, known_as=whole) for name, rows in sets.items()]
        self.settings = settings
        self.tasks = task_places(list(sets), task_groups)
        if len(self.tasks) == 1 and combine == "votes":
            logger.warning(
                "icons: the evaluation rows are one task, so there is no vote and the rows are those of less with "
                "decay: %g -> for several tasks set eval_on_each_dataset: true (each dataset one) or task_boundaries",
                decay,
            )
        self.vote_share, self.combine, self.candidates = vote_share, combine, candidates
        self._running = RunningScores(len(self.targets), float(decay))
        self._scored: GradientScores | None = None  # at this update, until it is explained

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Gradients of the tasks' rows and of the candidates. See the base class."""
        return gradient_cost(params, ahead, ahead.rows.at_most(params["candidates"]), ahead.target, ahead.rows)

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses too few rows or candidates, and a model without a gradient per row."""
        require_candidates(self.candidates, run.most_rows)
        require_labelled(self.dataset, run.most_rows)
        try_gradients(model, self.dataset, self.data_collator, self.accelerator, self.settings.factor_dim)

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Scores the candidates and returns the ``num_samples`` with most votes, those first. See the base class.

        The score of a row is its votes plus half its mean influence, which ranks rows as they are chosen and rounds to
        the votes; with ``combine: mean`` the mean itself.

        Raises:
            ComponentError: Fewer candidates have a label than were asked for; a trainable parameter has no per-sample
                gradient; the optimizer keeps no moments for ``adam``.
        """
        context: UpdateContext = kwargs["context"]
        pool = candidate_rows(len(self.dataset), self.candidates, self.generator(context.update))
        found_PJ = self._averages(model, context, pool)
        usable = scored_places(found_PJ.max(axis=1), pool)
        require_enough(num_samples, len(usable), len(pool), "have a score", f"{SHOW_LABELS}, more candidates")
        asked = self.vote_share or num_samples / max(1, len(usable))
        votes_U, means_U = self._judged(found_PJ[usable], asked)
        best = usable[first_places(num_samples, -votes_U, -means_U)]
        scores_P = np.full(len(pool), np.nan)
        scores_P[usable] = votes_U + (means_U / 2 if self.combine == "votes" else 0.0)
        return Selection(pool[best], scores_P[best], candidates=(pool, scores_P))

    def explain(
        self, model: torch.nn.Module, rows_S: NDArray[np.int64], step_id: int, **kwargs: Any
    ) -> Explanation | None:
        """Returns which target rows' gradients agree with the steps of some rows. See the base class.

        The terms are cos(grad l(z'), step(z)) / M of this update, in the set with the row's highest average; a vote has
        no terms.
        """
        scored, self._scored = self._scored, None
        return None if scored is None else scored.explained(model, rows_S, self._running)

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float64]:
        """Returns the score of every row: (N,), NaN without a label. See the base class.

        No number of rows is asked for here: without ``vote_share`` each task votes for a fifth of the rows, as in the
        paper.
        """
        pool = np.arange(len(self.dataset), dtype=np.int64)
        found_NJ = self._averages(model, kwargs["context"], pool)
        usable = scored_places(found_NJ.max(axis=1))
        scores_N = np.full(len(pool), np.nan)
        if len(usable):
            votes_U, means_U = self._judged(found_NJ[usable], self.vote_share or TOP_SHARE)
            scores_N[usable] = votes_U + (means_U / 2 if self.combine == "votes" else 0.0)
        return scores_N

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums over the updates so far."""
        return self._running.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._running.load_state_dict(state)

    def _judged(
        self, found_UJ: NDArray[np.float64], top_share: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns what rows are ranked by, and what decides between equal ones: (U,) each, higher is better."""
        if self.combine == "mean":
            means_U = mean_over_rows(found_UJ, [len(target.dataset) for target in self.targets])
            return means_U, means_U
        votes_U, means_U = consensus(task_scores(found_UJ, self.tasks), min(1.0, top_share))
        return votes_U.astype(np.float64), means_U

    def _averages(self, model: torch.nn.Module, context: UpdateContext, pool: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores ``pool`` and returns the averages over the updates, by rate and age: (P, J) in [-1, 1]."""
        self._scored = GradientScores(self, self.settings, self.targets, context)
        found_PJ = self._scored.scores(model, pool)
        return self._running.add(pool, list(range(len(self.targets))), found_PJ, context.learning_rate)


def _of_votes_alone(combine: str, **given: Any) -> list[Problem]:
    """Returns a problem for each parameter that says how votes are counted where none are."""
    if combine != "mean":
        return []
    way_out = "remove it, or set combine: votes"
    return [
        Problem(key, f"found {value!r} beside combine: mean, which counts no votes", way_out)
        for key, value in given.items()
        if value is not None
    ]
