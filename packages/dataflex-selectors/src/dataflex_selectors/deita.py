"""The best rows by any score that are not near each other: a walk down the scores (DEITA).

Liu, Zeng, He, Jiang and He, What Makes Good Data for Alignment? A Comprehensive Study of Automatic Data Selection in
Instruction Tuning, ICLR 2024, arXiv 2312.15685, section 2.4:

    s_i   = the product of the scores of row i                    complexity times quality in the paper
    walk down s; take row i if  max over taken j of cos(x_i, x_j) <= tau          how near the nearest taken row is
    stop when there are enough

Cost: the vectors of all rows once, and at most N T D products for T rows taken. Rejected: comparing a row with all
earlier ones at once, as the authors' program does in batches, which leaves rows out for the sake of rows that are left
out themselves.

Not covered: scores per turn of a conversation. A row has one number for each score; the sum over turns of the paper is
to be in the column or the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.context import PassOptions, RunAhead, UpdateContext
from dataflex.core.cost import Ahead, Cost, Work
from dataflex.core.errors import Problem
from dataflex.core.parameter_checks import at_least, between, flag, one_of, require
from dataflex.core.registry import register_selector
from dataflex.core.score_names import COLUMN, FILE, LOSS, REWARD, SEEN, ScoreName, score_name
from dataflex.run.row_file import read_rows
from dataflex.run.score_file import SCORE
from dataflex.scoring.named_scores import NamedScores
from dataflex.scoring.trial import try_losses
from dataflex.train.selector.base_selector import Selection
from dataflex.utils.logging import logger
from numpy.typing import NDArray

from dataflex_selectors.parts.enough import require_enough
from dataflex_selectors.parts.finite_scores import scored_places
from dataflex_selectors.parts.near_copies import Near, cosine_above, manhattan_below, walked_apart
from dataflex_selectors.parts.own_vectors import OwnVectors, RowVectors, vectors_wide, vectors_work
from dataflex_selectors.parts.walk_rounds import is_stale, ranking_turns, worth_ranking

if TYPE_CHECKING:
    import torch

METRICS = ("cosine", "manhattan")
_LOOSER = 8  # times that relax moves the threshold; after that no row is near


def is_near(metric: str, threshold: float) -> Near:
    """Returns the test for two rows that are too near: a cosine above, or a Manhattan distance below the threshold."""
    return cosine_above(threshold) if metric == "cosine" else manhattan_below(threshold)


def looser(metric: str, threshold: float) -> float:
    """Returns the threshold half of the way to where no row is near: a cosine of 1, or a distance of 0."""
    return (threshold + 1) / 2 if metric == "cosine" else threshold / 2


@register_selector("deita")
class DeitaSelector(OwnVectors):
    """Takes the rows with the highest scores, but none that is near one taken before it (DEITA).

    Args:
        score: What to walk down: a name of scores, see docs/scores.md, or a list of names, whose product counts.
        ascending: Whether the lowest score comes first.
        metric: cosine or manhattan, of vectors of length 1.
        threshold: Of cosine: a row is left out where its cosine with a taken row is above this. Of manhattan: where
            its distance to a taken row is below this.
        too_few: What to do where the walk ends with fewer rows than are asked for: error, or relax, which moves the
            threshold half of the way to where no row is near and walks on, until there are enough.
        token_budget: Tokens that are scored or embedded at once; null for a default that suits the device.
        **run: How rows are embedded, a file of vectors, ``exclude_seen``, and what every selector is given: see
            :class:`~dataflex_selectors.parts.own_vectors.OwnVectors`. With ``exclude_seen`` an update walks on where
            the last one stopped, and rows given before keep rows near them out, until the walk has ended; then it
            begins anew.

    Raises:
        ConfigError: A parameter is out of its range, a file cannot be read, or a package is missing; the message holds
            everything that is wrong.
    """

    scores_named_in = "score"

    def __init__(
        self,
        *,
        score: str | Sequence[str] = "length",
        ascending: bool = False,
        metric: str = "cosine",
        threshold: float = 0.9,
        too_few: str = "error",
        token_budget: int | None = None,
        **run: Any,
    ) -> None:
        super().__init__(too_few=too_few, token_budget=token_budget, **run)
        require(
            "deita selector",
            *self.problems,
            *score_problems(score),
            flag("ascending", ascending),
            one_of("metric", metric, METRICS),
            at_least("threshold", threshold, 0) if metric == "manhattan" else between("threshold", threshold, 0, 1),
        )
        self.open_vectors("deita selector")
        self.score, self.ascending = score_list(score), ascending
        self.metric, self.threshold = metric, float(threshold)
        self.token_budget = token_budget
        self.takes_seen = any(ScoreName.of(name).kind == SEEN for name in self.score)
        self.changes = any(ScoreName.of(name).changes for name in self.score)
        self._ahead: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # the next rows
        self._values: NDArray[np.float64] = np.empty(0)  # their scores
        self._ranked_at = -1  # the update at which the rows ahead were ranked

    @property
    def reads_batches(self) -> bool:  # type: ignore[override]  # it depends on parameters
        """Whether the embedding is the model's, or a score is a loss that may be computed."""
        return self.embedder.moves or any(may_compute_losses(name) for name in self.score)

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses what the base class refuses, and a model that gives rows no loss where that is the score."""
        super().check_run(model, run)
        if any(may_compute_losses(name) for name in self.score):
            try_losses(model, self.dataset, self.data_collator, self.accelerator)

    @classmethod
    def needs_columns(cls, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns the columns that ``score`` names. See the base class."""
        names = map(ScoreName.of, score_list(params.get("score", ())))
        return tuple(name.argument for name in names if name.kind == COLUMN)

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """The rows embedded, scored and walked over, where rows are ranked. See the base class."""
        size, count = int(ahead.rows.rows), max(1, round(ahead.asked.rows))
        kinds = [ScoreName.of(name) for name in score_list(params["score"])]
        moves, width = params["embedding"] == "model" and params["vectors"] is None, vectors_wide(params, ahead)
        at = ranking_turns(
            size, min(count, size), -(-(ahead.updates - ahead.first) // ahead.every),
            moves=moves, changes=any(kind.changes for kind in kinds), seen=params["exclude_seen"],
            refresh=-(-params["refresh"] // ahead.every),
        ) if size else {}  # fmt: skip
        ranked, work = at.get((ahead.update - ahead.first) // ahead.every), Work()
        if ranked is not None:
            work = Work(products=float(size) * ranked * width)
            if moves or params["embedding"] == "ngrams" or ahead.due():
                work += vectors_work(params, ahead.rows)
            if any(kind.kind == LOSS for kind in kinds):
                work += Work(losses=ahead.rows)
        return Cost(work, host_bytes=8.0 * width * size, state_bytes=size / 8 + 16.0 * count)

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Returns the next rows of the walk, the best first, with their scores.

        Raises:
            ComponentError: Fewer rows have a label and a score than are asked for, or the walk ends with fewer.
        """
        context: UpdateContext = kwargs["context"]
        if len(self._ahead) < num_samples or is_stale(
            self._ranked_at, context.update, moves=self._moves, changes=self.changes, refresh=self.refresh
        ):
            self._rank(model, step_id, num_samples, context)
        rows, values = self._ahead[:num_samples], self._values[:num_samples]
        candidates = self._ahead, self._values
        if self.exclude_seen:
            self._ahead, self._values = self._ahead[num_samples:], self._values[num_samples:]
            self._seen[rows] = True
        return Selection(rows, values, candidates=candidates)

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float64]:
        """Returns the score of each row that a walk over all rows takes, -inf of those it leaves out: (N,).

        NaN without a label or a score; with ``ascending`` the negative score, so that higher is better. See the base
        class.
        """
        rows, values_E = self.eligible(), self._scores_of(model, kwargs["context"])
        scores_N = np.full(len(self.dataset), np.nan)
        order = self._order(rows, values_E)
        scores_N[rows[order]] = -np.inf
        if len(order):
            vectors = self.vectors_of(model, step_id)
            taken = self.on_rank_0(lambda: self._walked(vectors, order, None))
            scores_N[rows[taken]] = -values_E[taken] if self.ascending else values_E[taken]
        return scores_N

    @property
    def _moves(self) -> bool:
        return self._given is None and self.embedder.moves

    def _scores_of(self, model: torch.nn.Module, context: UpdateContext) -> NDArray[np.float64]:
        """Returns the product of the named scores of the eligible rows: (E,), NaN without one. Collective."""
        shared = context.scores
        if shared is None:  # nobody shares: made by hand
            own = NamedScores(self.dataset, self.data_collator, self.accelerator)
            own.begin_update(model, context.step)
            shared = own
        how = PassOptions(self.token_budget, self.name, self.cache_dir, self.cache_owner)
        found_E = np.ones(len(self.eligible()))
        for name in self.score:
            found_E = found_E * shared.of(name, self.eligible(), how=how)
        return found_E

    def _order(self, rows: NDArray[np.int64], values_E: NDArray[np.float64]) -> NDArray[np.int64]:
        """Returns the places of the eligible rows that have a score, in the order of the walk; ties by row number."""
        usable = scored_places(values_E, rows)
        keys = values_E[usable] if self.ascending else -values_E[usable]
        return np.asarray(usable[np.argsort(keys, kind="stable")])

    def _rank(self, model: torch.nn.Module, step_id: int, count: int, context: UpdateContext) -> None:
        """Walks until there are as many rows as the updates until the next walk ask for."""
        rows, values_E = self.eligible(), self._scores_of(model, context)
        order = self._order(rows, values_E)
        have, way_out = "have a label and a score", "scores for more rows, a larger cutoff_len if it cuts answers off"
        require_enough(count, len(order), len(self.dataset), have, way_out)
        seen_E = self._seen[rows]
        turns = max(1, context.updates - context.update)
        worth = worth_ranking(
            count, turns, moves=self._moves, changes=self.changes, seen=self.exclude_seen, refresh=self.refresh
        )
        vectors = self.vectors_of(model, step_id, keep=True)
        taken, begins_anew = self.on_rank_0(lambda: self._found(vectors, order, seen_E, count, worth))
        if begins_anew:
            self._seen[:] = False
        self._ahead, self._values, self._ranked_at = rows[taken], values_E[taken], context.update

    def _found(
        self, vectors: RowVectors, order: NDArray[np.int64], seen_E: NDArray[np.bool_], count: int, worth: int
    ) -> tuple[NDArray[np.int64], bool]:
        """Returns the places of the next rows, at least ``count``, and whether the walk began anew. On rank 0 alone."""
        taken = self._walked(vectors, order[~seen_E[order]], worth, np.flatnonzero(seen_E))
        if len(taken) >= count:
            return taken, False
        begins_anew = bool(seen_E.any())
        if begins_anew:  # the last of this walk, then the first of the next one
            left = order[~np.isin(order, taken)]
            taken = np.concatenate([taken, self._walked(vectors, left, count - len(taken), taken)])
        if len(taken) < count:
            taken = self._relaxed(vectors, order, taken, count)
        return taken, begins_anew

    def _relaxed(
        self, vectors: RowVectors, order: NDArray[np.int64], taken: NDArray[np.int64], count: int
    ) -> NDArray[np.int64]:
        """Returns ``count`` places: those taken, and more under looser and looser thresholds."""
        if self.too_few == "error":
            is_cosine = self.metric == "cosine"
            which = f"{'cosine is above' if is_cosine else 'distance is below'} {self.threshold:g}"
            what = f"no row stays whose {which} with one that was taken"
            self.too_few_found(count, len(taken), what, f"a {'higher' if is_cosine else 'lower'} threshold")
        strict, threshold = len(taken), self.threshold
        for _ in range(_LOOSER):
            threshold = looser(self.metric, threshold)
            left = order[~np.isin(order, taken)]
            taken = np.concatenate([taken, self._walked(vectors, left, count - len(taken), taken, threshold)])
            if len(taken) >= count:
                break
        copies = order[~np.isin(order, taken)][: count - len(taken)]
        logger.warning(
            "%s: %d of %d rows are left at threshold %g; %d more came at thresholds up to %g, and %d that are copies",
            self.name, strict, count, self.threshold, len(taken) - strict, threshold, len(copies),
        )  # fmt: skip
        return np.concatenate([taken, copies])

    def _walked(
        self,
        vectors: RowVectors,
        order: NDArray[np.int64],
        most: int | None,
        before: NDArray[np.int64] | None = None,
        threshold: float | None = None,
    ) -> NDArray[np.int64]:
        near = is_near(self.metric, self.threshold if threshold is None else threshold)
        desc = f"{self.name}: walking down the scores"
        return walked_apart(vectors, order, near, most, before, self.device, desc)

    def state_dict(self) -> dict[str, Any]:
        """Returns the rows ahead, which were given, and when they were ranked."""
        ahead = {"ahead": self._ahead, "values": self._values, "ranked_at": self._ranked_at}
        return super().state_dict() | ahead

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned.

        Raises:
            CheckpointError: The file of vectors holds others.
        """
        super().load_state_dict(state)
        self._ahead = np.asarray(state["ahead"], dtype=np.int64)
        self._values = np.asarray(state["values"], dtype=np.float64)
        self._ranked_at = int(state["ranked_at"])


def may_compute_losses(name: str) -> bool:
    """Returns whether scores of a name may take a pass of the model: losses, and seen ones of a greatest age."""
    found = ScoreName.of(name)
    return found.kind == LOSS or (found.kind == SEEN and bool(found.argument))


def score_list(found: Any) -> tuple[str, ...]:
    """Returns the names of scores that a parameter gives, one or several."""
    return (found,) if isinstance(found, str) else tuple(found)


def score_problems(found: Any) -> list[Problem | None]:
    """Returns what is wrong with the names of scores, and with the files that they name."""
    if isinstance(found, list | tuple) and found:
        return (
            [problem for name in found for problem in score_problems(name)]
            if all(isinstance(name, str) for name in found)
            else [Problem("score", f"found {found!r}, allowed: a name of scores, or a list of names")]
        )
    problem = score_name("score", found)
    if problem is None and ScoreName.of(found).kind == REWARD:
        what = f"found {found!r}, which prompts have, and rows are compared here by their tokens"
        problem = Problem("score", what, "write loss, seen, length, column:NAME or file:PATH")
    if problem is not None or ScoreName.of(found).kind != FILE:
        return [problem]
    contents = read_rows("score", ScoreName.of(found).argument, SCORE, sole=True)
    return [contents if isinstance(contents, Problem) else None]
