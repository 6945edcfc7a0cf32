"""LESS at a fraction of its cost: scores a few rows of each cluster; the other rows get the scores of those near them.

Train dataset -> embeddings -> k-means -> representatives of each cluster -> their influence on the target as in LESS
(see less.py) -> smoothed over all rows -> average over updates -> selection.

    s_i  = sum_r k(x_i, x_r) s_r / sum_r k(x_i, x_r)        the scored rows of the two nearest clusters; parts/smoothing
    UCB_c = mean_c + beta std_c sqrt(ln t / n_c)            budget: ucb; arXiv 2506.10288; parts/arms
    n_c proportional to |c| exp(S_c / T)                    mode: quota; S_c is the mean of the cluster's scores

Cost: gradients of ``clusters`` times ``representatives`` rows, by default those of 4 rows in 64, a sixteenth of LESS;
then arithmetic over the embeddings. Rejected: giving every row of a cluster one score, that of the mean of its
representatives' gradients, as OpenDCAI/DataFlex does. Then all rows of a cluster tie. Where the selection ends within a
cluster, the order of the file decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.cost import Ahead, Cost, Work
from dataflex.core.explain import Explanation
from dataflex.core.parameter_checks import at_least, count, count_or_null, flag, one_of, positive, require
from dataflex.core.registry import register_selector
from dataflex.scoring.embedder import embedding_work, vector_width
from dataflex.scoring.k_means import ITERATIONS, tries
from dataflex.scoring.trial import try_gradients
from dataflex.train.selector.base_selector import Selection
from numpy.typing import NDArray

from dataflex_selectors.parts.arms import next_pulls, quotas
from dataflex_selectors.parts.enough import require_enough, tell_of_clusters
from dataflex_selectors.parts.finite_scores import scored_places
from dataflex_selectors.parts.gradient_scores import (
    ComparesSteps,
    GradientScores,
    GradientSettings,
    Score,
    gradient_cost,
    loss_targets,
)
from dataflex_selectors.parts.pick import pick, picking_problems
from dataflex_selectors.parts.row_clusters import Clustering, cluster_rows
from dataflex_selectors.parts.running_scores import RunningScores
from dataflex_selectors.parts.smoothing import smoothed
from dataflex_selectors.parts.to_target import ToTarget

if TYPE_CHECKING:
    pass

BUDGETS = ("even", "ucb")
_ROUNDS = 8  # of budget: ucb; each round scores many rows in one pass, so that a GPU is not idle


@register_selector("cluster_less")
class ClusterLessSelector(ToTarget, ComparesSteps):
    """Takes the rows whose training step lowers the loss on the evaluation set most, estimated from similar rows.

    Args:
        clusters: How many clusters; null for one to 64 rows.
        representatives: Rows of each cluster that are scored, on average.
        budget: even gives each cluster as many, ucb more to those that may hold the highest scores.
        exploration: Of ucb: weight of the uncertainty of a cluster's mean; 0 goes by the means alone.
        resample: Whether each update scores other representatives.
        width: Of the kernel, in cosines; smaller follows the nearest scored row more closely.
        gradient_type: adam compares the step that the optimizer would take, with its epsilon where torch has it
            (Adam, AdamW, NAdam, RAdam); sgd the gradient itself.
        proj_dim: Sketch gradients to this many numbers; null compares them whole.
        decay: Factor on the scores of earlier updates, at each update; 1 sums them up, 0 forgets them.
        mode: topk takes the highest scores, sample draws by them, quota gives each cluster a share by its mean score
            and draws within.
        temperature: Of sample and quota: below 1 sharpens, above 1 softens.
        token_budget: Tokens that are scored or embedded at once; null for a default that suits the device.
        **run: The target, of whose sets a row's score is that for the one it suits best; how rows are embedded, to be
            clustered; and what every selector is given: see :class:`ToTarget`. ``cache_dir`` keeps what a long scoring
            pass has computed, so that an interrupted run goes on from there.

    Raises:
        ConfigError: A parameter is out of its range, there is no evaluation set, or a package is missing; the message
            holds everything that is wrong.
    """

    reads_batches = True
    asks = "gradients"

    def __init__(
        self,
        *,
        clusters: int | None = None,
        representatives: int = 4,
        budget: str = "even",
        exploration: float = 1.0,
        resample: bool = False,
        width: float = 0.05,
        gradient_type: str = "adam",
        proj_dim: int | None = None,
        decay: float = 0.9,
        mode: str = "topk",
        temperature: float = 1.0,
        token_budget: int | None = None,
        **run: Any,
    ) -> None:
        super().__init__(token_budget=token_budget, **run)
        settings = GradientSettings(gradient_type, proj_dim, token_budget)
        require(
            "cluster_less selector",
            *self.problems,
            count_or_null("clusters", clusters),
            count("representatives", representatives),
            one_of("budget", budget, BUDGETS),
            at_least("exploration", exploration, 0),
            flag("resample", resample),
            positive("width", width),
            *settings.problems(),
            *picking_problems(decay, mode, temperature),
        )
        self.aim()
        self.targets, self.settings = loss_targets(self.target_sets), settings
        self.clusters, self.representatives = clusters, representatives
        self.budget, self.exploration, self.resample = budget, float(exploration), resample
        self.width, self.mode, self.temperature = float(width), mode, float(temperature)
        self._running = RunningScores(len(self.targets), float(decay))
        self._gradients: GradientScores | None = None  # of this update, until it is explained
        self._clustering: Clustering | None = None

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Rows embedded and clustered where that is due; gradients of representatives and target. See the base."""
        size, width, moves = ahead.rows.rows, vector_width(params, ahead), params["embedding"] == "model"
        clusters = min(params["clusters"] or math.ceil(size / 64), size)
        scored = ahead.rows.at_most(params["representatives"] * clusters)
        found = gradient_cost(params, ahead, scored, ahead.target, ahead.rows)
        rounds = ITERATIONS + 1 + (tries(int(clusters)) if clusters else 0)
        work = Work(products=size * 2 * scored.rows / max(1, clusters) * width)  # the smoothing
        if ahead.due(params["refresh"] if moves else None):
            work += embedding_work(params, ahead.rows) + Work(products=size * clusters * width * rounds)
        kept = 24 * size + (2 * width * size if moves else 0)
        return replace(
            found,
            update=found.update + work,
            host_bytes=found.host_bytes + 6.0 * width * size,
            state_bytes=found.state_bytes + kept,
        )

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses too few rows, a model without embeddings, and one without a gradient per row."""
        super().check_run(model, run)
        so = "all rows are scored, which less does without clusters"
        tell_of_clusters(self.name, "clusters", self.clusters, len(self.eligible()), so)
        try_gradients(model, self.dataset, self.data_collator, self.accelerator)

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Scores representatives, smooths their scores and returns the rows that ``mode`` picks. See the base class.

        Raises:
            ComponentError: Fewer rows have a score than were asked for; a trainable parameter has no per-sample
                gradient; the optimizer keeps no moments for ``adam``.
        """
        context: UpdateContext = kwargs["context"]
        rows = self.eligible()
        best_E = self._averages(model, context).max(axis=1, initial=-np.inf)
        require_enough(num_samples, len(scored_places(best_E, rows)), len(self.dataset))
        generator = self.generator(context.update)
        if self.mode == "quota":
            chosen = self._by_quota(best_E, num_samples, generator)
        else:
            chosen = pick(best_E[:, None], num_samples, self.mode, self.temperature, generator, rows)
        return Selection(rows[chosen], best_E[chosen], candidates=(rows, best_E))

    def explain(
        self, model: torch.nn.Module, rows_S: NDArray[np.int64], step_id: int, **kwargs: Any
    ) -> Explanation | None:
        """Returns which target rows' gradients agree with the steps of some rows. See the base class.

        The terms are cos(grad l(z'), step(z)) / M of this update, in the set with the row's highest average. The
        terms of a row that is no representative are computed for the row itself, so their sum is not its smoothed
        score.
        """
        scored, self._gradients = self._gradients, None
        return None if scored is None else scored.explained(model, rows_S, self._running)

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float64]:
        """Returns the score of every row, most of them smoothed: (N,), NaN without a label. See the base class."""
        scores_N = np.full(len(self.dataset), np.nan)
        if len(rows := self.eligible()):
            scores_N[rows] = self._averages(model, kwargs["context"]).max(axis=1)
        return scores_N

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums over the updates and the clusters."""
        kept = None if self._clustering is None else self._clustering.state_dict(self.embedder.moves)
        return {"running": self._running.state_dict(), "clustering": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._running.load_state_dict(state["running"])
        self._clustering = None if state["clustering"] is None else Clustering.restored(state["clustering"])

    def _averages(self, model: torch.nn.Module, context: UpdateContext) -> NDArray[np.float64]:
        """Returns the average over the updates, by rate and age, of each of the E eligible rows: (E, J)."""
        rows = self.eligible()
        if not len(rows):
            return np.empty((0, len(self.targets)))
        clustering = self._clustered(model, context)
        order_E = clustering.order
        if self.resample:
            order_E = self.generator(f"{context.update}, representatives").permutation(len(rows))
        self._gradients = GradientScores(self, self.settings, self.targets, context)
        with self._gradients.scoring(model) as score:
            scored, scores = self._scored(clustering.nearest[:, 0], order_E, score)
        assert clustering.vectors is not None
        found_EJ = smoothed(clustering.vectors, clustering.nearest, scored, scores, self.width)
        return self._running.add(rows, list(range(len(self.targets))), found_EJ, context.learning_rate)

    def _clustered(self, model: torch.nn.Module, context: UpdateContext) -> Clustering:
        """Returns the clusters, made anew where they are due; after a resume, with the vectors looked up again."""
        known = self._clustering
        if known is None or self.is_due(known.update, context.update):
            vectors_ED = self.embedded(model, context.step, self.eligible(), everywhere=True)
            clusters = self.clusters or -(-len(vectors_ED) // 64)
            order_E = self.generator(f"{context.update}, order").permutation(len(vectors_ED))
            generator = self.generator(f"{context.update}, clusters")
            known = cluster_rows(vectors_ED, clusters, order_E, generator, context.update, self.accelerator)
        elif known.vectors is None:
            known = known.with_vectors(self.embedded(model, context.step, self.eligible(), everywhere=True))
        self._clustering = known
        return known

    def _scored(
        self, label_E: NDArray[np.int64], order_E: NDArray[np.int64], score: Score
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Returns which of the eligible rows were scored, and their scores: (R,) and (R, J)."""
        rows = self.eligible()
        order_E = order_E[np.argsort(label_E[order_E], kind="stable")]  # cluster by cluster, each in the order given
        sizes_C = np.bincount(label_E)
        start_C = np.cumsum(sizes_C) - sizes_C
        rank_E = np.arange(len(order_E)) - np.repeat(start_C, sizes_C)
        total = min(self.representatives * len(sizes_C), len(rows))
        each = self.representatives if self.budget == "even" else min(2, self.representatives)
        scored = order_E[rank_E < each]
        scores = score(rows[scored])
        if self.budget == "even":
            return scored, scores
        step = -(-(total - len(scored)) // _ROUNDS)
        while len(scored) < total:
            taken_C = np.bincount(label_E[scored], minlength=len(sizes_C))
            count = min(step, total - len(scored))
            more_C = next_pulls(label_E[scored], scores.max(axis=1), sizes_C - taken_C, count, self.exploration)
            own_E = np.repeat(np.arange(len(sizes_C)), sizes_C)
            new = order_E[(rank_E >= taken_C[own_E]) & (rank_E < (taken_C + more_C)[own_E])]
            scored, scores = np.concatenate([scored, new]), np.concatenate([scores, score(rows[new])])
        return scored, scores

    def _by_quota(self, best_E: NDArray[np.float64], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Returns the rows drawn within clusters, the best first."""
        assert self._clustering is not None
        label_E = np.where(np.isfinite(best_E), self._clustering.nearest[:, 0], -1)
        sizes_C = np.bincount(label_E[label_E >= 0])
        sums_C = np.bincount(label_E[label_E >= 0], best_E[label_E >= 0])
        taken_C = quotas(sizes_C, sums_C / np.maximum(sizes_C, 1), count, self.temperature)
        drawn = [
            generator.choice(np.flatnonzero(label_E == cluster), size=taken, replace=False)
            for cluster, taken in enumerate(taken_C)
            if taken
        ]
        chosen = np.concatenate(drawn).astype(np.int64)
        return chosen[np.argsort(-best_E[chosen], kind="stable")]
