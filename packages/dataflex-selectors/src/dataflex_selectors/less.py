"""LESS: the rows whose own training step lowers the loss on a target set most.

Xia et al. 2024, arXiv 2402.04333. Gradient of each target row -> their mean, per target set -> the cosine with each
train row's Adam step -> the rows with the highest.

    s_tj(z) = mean over z' in set j of cos(grad l(z'), step_t(z))     section 3.1; step = Adam's from the row alone
    S_j(z)  = gamma S_j(z) + lr_t s_tj(z)                             one term per update instead of one per epoch
    score   = max_j S_j(z)                                            section 4.2

Here each update is a checkpoint of the paper, with the weights and moments of that step. ``decay`` (gamma) lowers the
weight of old terms; 1 keeps the paper's sum. There is no separate warm-up run and no gradient is stored: each row's
step is multiplied with the mean of the normalised target gradients at once, exactly (``proj_dim: null``) or sketched.
The step is torch's, m' / (sqrt(v') + eps); LESS has eps inside of the root, see :mod:`dataflex.scoring.gradients.adam`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.cost import Ahead, Cost
from dataflex.core.explain import Explanation
from dataflex.core.parameter_checks import count_or_null, require
from dataflex.core.registry import register_selector
from dataflex.scoring import read_target
from dataflex.scoring.trial import try_gradients
from dataflex.train.selector.base_selector import Selection
from numpy.typing import NDArray

from dataflex_selectors.parts.candidates import candidate_rows
from dataflex_selectors.parts.enough import require_candidates, require_labelled
from dataflex_selectors.parts.gradient_scores import (
    ComparesSteps,
    GradientScores,
    GradientSettings,
    gradient_cost,
    loss_targets,
)
from dataflex_selectors.parts.pick import pick, picking_problems
from dataflex_selectors.parts.running_scores import RunningScores

if TYPE_CHECKING:
    import torch


@register_selector("less")
class LessSelector(ComparesSteps):
    """Takes the rows whose training step lowers the loss on the evaluation set most.

    Args:
        eval_dataset: The target: a tokenised dataset, or several by name. A row's score is that for the set it suits
            best.
        gradient_type: adam compares the step that the optimizer would take, with its epsilon where torch has it
            (Adam, AdamW, NAdam, RAdam); sgd the gradient itself.
        proj_dim: Sketch gradients to this many numbers, which saves memory where there are many target sets; null
            compares them whole.
        factor_dim: Keep this many dimensions of each side of a large matrix's gradient, for training the whole model;
            null keeps all of them, which takes the memory of the model for each target set.
        decay: Factor on the scores of earlier updates, at each update; 1 sums them up, 0 forgets them.
        mode: topk takes the highest scores, sample draws by them, quota lets the target sets choose in turn.
        temperature: Of sample: below 1 sharpens, above 1 softens.
        candidates: Rows drawn afresh at each update to choose from; null for all.
        token_budget: Tokens that are scored at once; null for a default that suits the device.
        **run: What every selector is given; ``cache_dir`` keeps what a long scoring pass has computed, so that an
            interrupted run goes on from there.

    Raises:
        ConfigError: A parameter is out of its range, or there is no evaluation set; the message holds all of it.
    """

    def __init__(
        self,
        *,
        eval_dataset: Any,
        gradient_type: str = "adam",
        proj_dim: int | None = None,
        factor_dim: int | None = None,
        decay: float = 0.9,
        mode: str = "topk",
        temperature: float = 1.0,
        candidates: int | None = None,
        token_budget: int | None = None,
        **run: Any,
    ) -> None:
        super().__init__(**run)
        settings = GradientSettings(gradient_type, proj_dim, token_budget, factor_dim)
        target = read_target(eval_dataset)
        require(
            "less selector",
            target.problem,
            *settings.problems(),
            *picking_problems(decay, mode, temperature),
            count_or_null("candidates", candidates, null="all"),
        )
        self.targets, self.settings = loss_targets(target.sets), settings
        self.mode, self.temperature = mode, float(temperature)
        self.candidates = candidates
        self._running = RunningScores(len(self.targets), float(decay))
        self._scored: GradientScores | None = None  # at this update, until it is explained

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Gradients of the target's rows and of the candidates. See the base class."""
        return gradient_cost(params, ahead, ahead.rows.at_most(params["candidates"]), ahead.target, ahead.rows)

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses too few rows or candidates, and a model without a gradient per row."""
        require_candidates(self.candidates, run.most_rows)
        require_labelled(self.dataset, run.most_rows)
        try_gradients(model, self.dataset, self.data_collator, self.accelerator, self.settings.factor_dim)

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Scores the candidates and returns the ``num_samples`` that ``mode`` picks. See the base class.

        Raises:
            ComponentError: Fewer candidates have a label than were asked for; a trainable parameter has no per-sample
                gradient; the optimizer keeps no moments for ``adam``.
        """
        context: UpdateContext = kwargs["context"]
        generator = self.generator(context.update)
        pool = candidate_rows(len(self.dataset), self.candidates, generator)
        scores_NJ = self._averages(model, context, pool)
        chosen = pick(scores_NJ, num_samples, self.mode, self.temperature, generator, pool)
        best_P = scores_NJ.max(axis=1)
        return Selection(pool[chosen], best_P[chosen], candidates=(pool, best_P))

    def explain(
        self, model: torch.nn.Module, rows_S: NDArray[np.int64], step_id: int, **kwargs: Any
    ) -> Explanation | None:
        """Returns which target rows' gradients agree with the steps of some rows. See the base class.

        The terms are cos(grad l(z'), step(z)) / M of this update, in the set with the row's highest average.
        """
        scored, self._scored = self._scored, None
        return None if scored is None else scored.explained(model, rows_S, self._running)

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float64]:
        """Returns the score of every row: (N,), NaN without a label. See the base class."""
        pool = np.arange(len(self.dataset), dtype=np.int64)
        return np.asarray(self._averages(model, kwargs["context"], pool).max(axis=1))

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums over the updates so far."""
        return self._running.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._running.load_state_dict(state)

    def _averages(self, model: torch.nn.Module, context: UpdateContext, pool: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores ``pool`` and returns the averages over the updates, by rate and age: (P, J) in [-1, 1]."""
        self._scored = GradientScores(self, self.settings, self.targets, context)
        found_PJ = self._scored.scores(model, pool)
        return self._running.add(pool, list(range(len(self.targets))), found_PJ, context.learning_rate)
