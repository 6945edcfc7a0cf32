"""GREATS: of each step's candidate rows, those whose steps together lower the loss on the target most.

Wang, Wu, Song, Mittal and Jia, GREATS: Online Selection of High-Quality Data for LLM Training in Every Iteration,
NeurIPS 2024. Candidates of a step -> gradient of each row -> products with the target's gradient and with each other ->
rows picked in turn.

    L(w - eta sum_{i in S} g_i) - L(w) ~ - eta sum_{i in S} <g_i, v> + eta^2 / 2 sum_{i, j in S} <g_i, H g_j>
    pick  i* = argmax_i  <g_i, v> - eta sum_{j in S} <g_i, g_j>,  and put it into S        the Hessian H taken as 1

v is the mean gradient of target rows; scores are divided by eta, so that a rate of 0 ranks by <g_i, v> alone. Every
step has candidates of its own, ``ratio`` times the rows that it trains on, of one pass over the dataset; those that it
leaves are not trained on before they come again. The gradients are those of the update before the stretch:
``update_step: 1`` is the authors' program, which picks at each step.

Cost: gradients of ``ratio`` times the rows of the stretch, and of the target's rows once an update. The vectors of one
step's candidates are kept at a time; see :mod:`dataflex.scoring.gradients.overlaps` for how exact their products are.
Rejected: the authors' products without the gradients themselves (their "ghost" products, for linear layers alone): they
need all candidates and target rows in one batch of one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.cost import Ahead, Cost, Work
from dataflex.core.errors import ComponentError
from dataflex.core.parameter_checks import at_least, at_least_or_null, count_or_null, flag, require
from dataflex.core.ranks.agreement import from_rank_0
from dataflex.core.registry import register_selector
from dataflex.rows.views import MixedSources, PlannedRows
from dataflex.scoring import RowPass, Sketch, TargetSet, influences, read_target, target_means, without_replicas
from dataflex.scoring.gradients.factors import projected_size
from dataflex.scoring.gradients.overlaps import RowProducts, kept_numbers, row_products
from dataflex.scoring.gradients.routes import gradient_routes
from dataflex.scoring.trial import try_gradients
from dataflex.train.selector.base_selector import Selection
from dataflex.utils.progress import Progress
from numpy.typing import NDArray

from dataflex_selectors.parts.enough import require_enough, require_labelled
from dataflex_selectors.parts.gradient_scores import ComparesSteps, GradientSettings, RunGradients, gradients_at
from dataflex_selectors.parts.step_candidates import StepCandidates, candidates_of, step_sizes

if TYPE_CHECKING:
    import torch

MOST_KEPT = 2**32
"""Numbers that are kept of the candidates of one step, over all ranks: 16 GiB."""
Products = Callable[[NDArray[np.int64]], RowProducts]
"""``products(rows)`` of candidates of one step."""


def greedy_picks(
    influence_C: NDArray[np.float64], overlap_CC: NDArray[np.float64], count: int, rate: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns the rows picked, in turn, and the score that each had then: (n,) each, n = count unless there are fewer.

    A row is picked where its score is negative, too; of equal scores the first row's. One without an influence, NaN, is
    never picked, and no row twice.

    Args:
        influence_C: (C,) <g_i, v> of each candidate.
        overlap_CC: (C, C) <g_i, g_j>.
        count: How many rows.
        rate: eta: what overlaps are multiplied with.
    """
    scores_C = np.where(np.isfinite(influence_C), influence_C, -np.inf).astype(np.float64)
    picks, found = [], []
    for _ in range(min(count, int(np.isfinite(scores_C).sum()))):
        best = int(scores_C.argmax())
        picks.append(best)
        found.append(scores_C[best])
        scores_C -= rate * overlap_CC[best]  # the interaction with what was picked
        scores_C[picks] = -np.inf
        scores_C[np.isnan(scores_C)] = -np.inf
    return np.array(picks, dtype=np.int64), np.array(found, dtype=np.float64)


@register_selector("greats")
class GreatsSelector(ComparesSteps):
    """Takes, of each step's candidates, the rows whose steps together lower the loss on the evaluation set most.

    Args:
        eval_dataset: The target: a tokenised dataset, or several by name, whose rows count alike.
        ratio: Candidates of a step for each row that it trains on.
        rate: What the overlap with rows that are taken is multiplied with; null for the learning rate, 0 for none.
        eval_rows: Target rows drawn for each step; null for all of them, once an update.
        normalize: Whether the steps of rows, and the gradients of target rows, are made equally long first.
        gradient_type: adam compares the step that the optimizer would take, with its epsilon where torch has it
            (Adam, AdamW, NAdam, RAdam); sgd the gradient itself.
        proj_dim: Sketch gradients to this many numbers for their overlaps; null keeps them whole.
        factor_dim: Keep this many dimensions of each side of a large matrix's gradient, for training the whole model;
            null keeps all of them.
        token_budget: Tokens that are scored at once; null for a default that suits the device.
        **run: What every selector is given; ``cache_dir`` is not used: a step is scored in one go.

    Raises:
        ConfigError: A parameter is out of its range, or there is no evaluation set; the message holds all of it.
    """

    def __init__(
        self,
        *,
        eval_dataset: Any,
        ratio: float = 2.0,
        rate: float | None = None,
        eval_rows: int | None = None,
        normalize: bool = False,
        gradient_type: str = "sgd",
        proj_dim: int | None = None,
        factor_dim: int | None = None,
        token_budget: int | None = None,
        **run: Any,
    ) -> None:
        super().__init__(**run)
        settings = GradientSettings(gradient_type, proj_dim, token_budget, factor_dim)
        target = read_target(eval_dataset)
        require(
            "greats selector",
            target.problem,
            at_least("ratio", ratio, 1),
            at_least_or_null("rate", rate, 0, null="the learning rate"),
            count_or_null("eval_rows", eval_rows, null="all"),
            flag("normalize", normalize),
            *settings.problems(),
        )
        self.target, self.settings = MixedSources(target.sets), settings
        self.ratio, self.rate, self.eval_rows, self.normalize = float(ratio), rate, eval_rows, normalize
        self._dealt: StepCandidates | None = None
        self._position = 0  # of a checkpoint, until the rows are dealt again

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Gradients of each step's candidates, and of the target's rows for each step or once. See the base class."""
        sizes = step_sizes(round(ahead.asked.rows), ahead.steps, max(1, round(ahead.step.rows)))
        scored = ahead.rows.of(_dealt_rows(sizes, params["ratio"], ahead.rows.rows))
        drawn = params["eval_rows"]
        target = ahead.target if drawn is None else ahead.target.at_most(drawn).times(len(sizes))
        formed = ahead.trainable
        if params["factor_dim"] is not None:
            formed = min(formed, params["factor_dim"] * int(ahead.trainable**0.5))
        widest = candidates_of(max(sizes, default=0), params["ratio"])
        adam = params["gradient_type"] == "adam" and params["factor_dim"] is None
        return Cost(
            Work(gradients=scored + target, factor_dim=params["factor_dim"]),
            device_bytes=4.0 * formed + (8.0 * formed if adam else 0),
            host_bytes=8.0 * formed + 4.0 * widest * (params["proj_dim"] or formed),
            state_bytes=8.0,
        )

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses too few rows, a model without a gradient per row, and more numbers than can be kept of a step."""
        require_labelled(self.dataset, run.most_rows)
        routes = gradient_routes(without_replicas(model))
        sizes = [projected_size(route.shape, self.settings.factor_dim) for route in routes]
        kept = kept_numbers(sizes, self.settings.proj_dim)
        rows = min(len(self.dataset), candidates_of(min(run.step_rows, max(1, run.most_rows)), self.ratio))
        if rows * kept > MOST_KEPT:
            raise ComponentError(
                f"the candidates of a step are {rows} rows, of {kept:,} numbers each: {4 * rows * kept / 2**30:,.0f} "
                f"GiB, and {4 * MOST_KEPT / 2**30:.0f} GiB are kept at most -> proj_dim: 8192 sketches them; or "
                "factor_dim: 64, LoRA, a smaller ratio"
            )
        try_gradients(model, self.dataset, self.data_collator, self.accelerator, self.settings.factor_dim)

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Picks the rows of each step among its candidates and returns them, step after step. See the base class.

        A row's score is what it had when it was picked; that of a candidate is its influence alone, <g_i, v>.

        Raises:
            ComponentError: Fewer rows have a label than were asked for; a trainable parameter has no per-sample
                gradient; the optimizer keeps no moments for ``adam``.
        """
        context: UpdateContext = kwargs["context"]
        dealt, sizes = self._candidates(), step_sizes(num_samples, context.steps, context.step_rows)
        rate = context.learning_rate if self.rate is None else self.rate
        chosen, scores = [np.empty(0, dtype=np.int64)], [np.empty(0)]
        seen, influence = [np.empty(0, dtype=np.int64)], [np.empty(0)]
        with Progress(f"{self.name}: step {context.step}", len(sizes), "steps") as progress:
            for number, own in enumerate([sizes] if self.eval_rows is None else [[size] for size in sizes]):
                with self.scoring(model, context, number) as products:
                    for size in own:
                        rows = dealt.draw(candidates_of(size, self.ratio), np.concatenate(chosen))
                        influence_C, picks, found = self._picked(products(rows), size, rate)
                        require_enough(size, len(picks), len(self.dataset), "have a label and are not taken yet")
                        chosen.append(rows[picks])
                        scores.append(found)
                        seen.append(rows)
                        influence.append(influence_C)
                        progress.done()
        return Selection(np.concatenate(chosen), np.concatenate(scores), candidates=_latest(seen, influence))

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float32]:
        """Returns the influence of every row on all target rows, <g_i, v>: (N,), NaN without a label. See the base."""
        context: UpdateContext = kwargs["context"]
        with self._gradients(model, context) as found:
            mean = self._mean(found, None, context)
            rows = self._pass(np.arange(len(self.dataset), dtype=np.int64), context, progress=True)
            direction = found.direction()  # after the target's own
            return influences(found.rows, found.model, mean, rows, direction, normalised=self.normalize)[:, 0]

    def state_dict(self) -> dict[str, Any]:
        """Returns how far the pass over the dataset is."""
        return {"position": self._position if self._dealt is None else self._dealt.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._dealt, self._position = None, int(state["position"])

    def _candidates(self) -> StepCandidates:
        if self._dealt is None:
            self._dealt = StepCandidates(self.dataset, self.seed, type(self).__name__, self.name, "candidates")
            self._dealt.position = self._position
        return self._dealt

    @contextmanager
    def _gradients(self, model: torch.nn.Module, context: UpdateContext) -> Iterator[RunGradients]:
        with gradients_at(model, self.settings, context.optimizer, self.accelerator, self.seed) as found:
            yield found

    @contextmanager
    def scoring(self, model: torch.nn.Module, context: UpdateContext, number: int) -> Iterator[Products]:
        """Yields what scores candidates by the target, or by the rows of it drawn for step ``number``. Collective."""
        with self._gradients(model, context) as found:
            mean = self._mean(found, number, context)
            direction = found.direction()  # after the target's own
            sketch = None
            if self.settings.proj_dim is not None:
                sizes = [route.size for route in found.rows.routes]
                sketch = Sketch(sizes, self.settings.proj_dim, self.seed, found.device)

            def products(rows_C: NDArray[np.int64]) -> RowProducts:
                one_pass = self._pass(rows_C, context)
                return row_products(found.rows, found.model, mean, one_pass, [len(rows_C)], direction, sketch)

            yield products

    def _mean(self, found: RunGradients, number: int | None, context: UpdateContext) -> list[torch.Tensor]:
        """Returns the mean gradient of all target rows, or of those drawn for a step: by parameter, (1, D)."""
        rows: Any = self.target
        if self.eval_rows is not None and number is not None:
            generator = self.generator(f"{context.update}, target rows of step {number}")
            count = min(self.eval_rows, len(rows))
            rows = PlannedRows(rows, np.sort(generator.choice(len(rows), size=count, replace=False)))
        how = self._pass(np.empty(0, dtype=np.int64), context, progress=self.eval_rows is None)
        target = [TargetSet("target", rows)]
        return target_means(found.rows, found.model, target, how, normalised=self.normalize)

    def _pass(self, rows: NDArray[np.int64], context: UpdateContext, progress: bool = False) -> RowPass:
        return RowPass(
            self.dataset,
            self.data_collator,
            self.accelerator,
            indices=rows,
            token_budget=self.settings.token_budget,
            desc=f"{self.name}: step {context.step}",
            progress=progress,
        )

    def _picked(
        self, products: RowProducts, count: int, rate: float
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
        """Returns the influence of each candidate, and the picks with their scores, as rank 0 has them. Collective."""
        influence_C, overlap_CC = products.target, products.overlaps[0]
        if self.normalize:
            norms_C = np.where(products.norms > 0, products.norms, 1.0)  # a step of length 0 has influence 0, not NaN
            influence_C, overlap_CC = influence_C / norms_C, overlap_CC / np.outer(norms_C, norms_C)
        if self.accelerator is None:
            return influence_C, *greedy_picks(influence_C, overlap_CC, count, rate)
        picks, found = from_rank_0(self.accelerator, lambda: greedy_picks(influence_C, overlap_CC, count, rate))
        return influence_C, picks, found


def _dealt_rows(sizes: list[int], ratio: float, rows: float) -> float:
    """Returns how many rows the steps of a stretch look at, each at most those that no step before it has chosen."""
    looked, taken = 0.0, 0
    for size in sizes:
        looked += min(candidates_of(size, ratio), max(size, rows - taken))
        taken += size
    return looked


def _latest(
    rows: list[NDArray[np.int64]], values: list[NDArray[np.float64]]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns rows in order, no row twice, with the value that each had last: (P,) each."""
    joined, found = np.concatenate(rows)[::-1], np.concatenate(values)[::-1]
    different, first = np.unique(joined, return_index=True)
    return different, found[first]
