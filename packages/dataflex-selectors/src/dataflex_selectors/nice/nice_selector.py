"""NICE: LESS with the reward of the model's own answers in place of the loss of reference answers.

NICE Data Selection for Instruction Tuning in LLMs with Non-differentiable Evaluation Metric (ICML 2025). Prompts of the
evaluation set -> answers of the model under its present weights -> a reward for each -> the gradient that raises
the reward -> the rows whose training step agrees with it.

    y_s ~ pi(.|x),  s = 1..S                                          answers to a prompt x
    R_s = r(x, y_s, y_ref)                                            text, reward model or judge
    g(x) = sum over the answers kept of R_s grad NLL(y_s | x)         the negative policy gradient; by default of all
    s_tj(z) = mean over the prompts x of set j of cos(g(x), step_t(z))  as LESS from here on
    S_j(z) = gamma S_j(z) + lr_t s_tj(z);   score = max_j S_j(z)

It is for metrics that cannot be differentiated. It costs S generated answers per prompt and update, besides what LESS
costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.cost import Ahead, Amount, Cost, Work
from dataflex.core.errors import blaming
from dataflex.core.explain import Explanation
from dataflex.core.parameter_checks import count_or_null, require
from dataflex.core.ranks.agreement import on_every_rank
from dataflex.core.registry import register_selector
from dataflex.scoring.trial import try_gradients
from dataflex.train.selector.base_selector import Selection
from numpy.typing import NDArray

from dataflex_selectors.nice.rewarded import RewardsAnswers
from dataflex_selectors.parts.candidates import candidate_rows
from dataflex_selectors.parts.enough import require_candidates, require_labelled
from dataflex_selectors.parts.gradient_scores import ComparesSteps, GradientScores, GradientSettings, gradient_cost
from dataflex_selectors.parts.pick import pick, picking_problems
from dataflex_selectors.parts.running_scores import RunningScores

if TYPE_CHECKING:
    import torch


@register_selector("nice")
class NiceSelector(RewardsAnswers, ComparesSteps):
    """Takes the rows whose training step raises the reward of the model's own answers to the evaluation set.

    A row's score is that for the evaluation set it suits best.

    Args:
        gradient_type: adam compares the step that the optimizer would take, with its epsilon where torch has it
            (Adam, AdamW, NAdam, RAdam); sgd the gradient itself.
        proj_dim: Sketch gradients to this many numbers; null compares them whole.
        decay: Factor on the scores of earlier updates, at each update; 1 sums them up, 0 forgets them.
        mode: topk takes the highest scores, sample draws by them, quota lets the target sets choose in turn.
        draw_temperature: Of mode sample: below 1 sharpens, above 1 softens.
        candidates: Rows drawn afresh at each update to choose from; null for all.
        token_budget: Tokens whose gradients are formed at once; null for a default that suits the device.
        **run: The evaluation set, how answers to it are drawn and rewarded, and what every selector is given: see
            :class:`~dataflex_selectors.nice.rewarded.RewardsAnswers`. ``cache_dir`` keeps what a long scoring pass has
            computed, so that an interrupted run goes on from there.

    Raises:
        ConfigError: A parameter is out of its range, missing or of no use, there is no evaluation set or tokenizer, the
            engine shards weights, or the reward model cannot be loaded.
    """

    asks = "generated answers"

    def __init__(
        self,
        *,
        gradient_type: str = "adam",
        proj_dim: int | None = None,
        decay: float = 0.9,
        mode: str = "topk",
        draw_temperature: float = 1.0,
        candidates: int | None = None,
        token_budget: int | None = None,
        **run: Any,
    ) -> None:
        super().__init__(**run)
        settings = GradientSettings(gradient_type, proj_dim, token_budget)
        require(
            "nice selector",
            *self.problems,
            *settings.problems(),
            *picking_problems(decay, mode, draw_temperature, key="draw_temperature"),
            count_or_null("candidates", candidates, null="all"),
        )
        self.settings, self.mode, self.draw_temperature, self.candidates = settings, mode, draw_temperature, candidates
        self.goal = self.policy_goal()
        self._running = RunningScores(len(self.goal.sets), float(decay))
        self._scored: tuple[GradientScores, list[int]] | None = None  # at this update, until it is explained

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """Answers generated and rewarded; gradients of theirs and of the candidates. See the base class.

        Answers are taken to be as long as they may be, and all to count.
        """
        prompts = ahead.target.at_most(None if params["prompts"] is None else params["prompts"] * ahead.sets)
        drawn, longest = prompts.rows * params["samples"], params["max_new_tokens"]
        asked = (prompts.tokens - prompts.labels) * params["samples"]  # tokens of prompts
        new = Amount(drawn, drawn * longest, drawn * longest)
        whole = Amount(drawn, asked + new.tokens, new.labels)
        counted = whole.at_most(None if params["keep"] is None else params["keep"] * prompts.rows)
        pool = ahead.rows.at_most(params["candidates"])
        found = gradient_cost(params, ahead, pool, counted, ahead.rows)
        others = {params["reward_model"]: whole} if params["reward"] == "model" else {}
        work = Work(forward=Amount(drawn, asked), generated=new, others=others)
        server = f"{drawn:,.0f} requests to the judge at each update; how long they take is not known"
        notes = (server,) if params["reward"] == "endpoint" else ()
        return replace(found, update=found.update + work, notes=notes)

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses too few rows or candidates, a parameter without a gradient, and answers without a reward.

        A judge is asked one question. See the base class.
        """

        def alone() -> None:
            with blaming(f"selector '{self.name}'"):
                require_candidates(self.candidates, run.most_rows)
                require_labelled(self.dataset, run.most_rows)
                try_gradients(model, self.dataset, self.data_collator, self.accelerator)
                self.goal.check_prompts(model)

        on_every_rank(self.accelerator, alone)  # all ranks ask for the reward, or none
        self.goal.check_reward()

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Draws and rewards answers, scores the candidates, and returns the rows that ``mode`` picks. See the base.

        Raises:
            ComponentError: No answer counts; the reward fails; fewer candidates have a label than were asked for; a
                trainable parameter has no per-sample gradient; the optimizer keeps no moments for ``adam``.
        """
        context: UpdateContext = kwargs["context"]
        generator = self.generator(context.update)
        pool = candidate_rows(len(self.dataset), self.candidates, generator)
        scores_PJ = self._averages(model, context, pool, generator)
        live_J = np.isfinite(scores_PJ).any(axis=0)  # a set that never had a target gives no scores
        scores_PJ = scores_PJ[:, live_J] if live_J.any() else scores_PJ
        chosen = pick(scores_PJ, num_samples, self.mode, self.draw_temperature, generator, pool)
        best_P = scores_PJ.max(axis=1)
        return Selection(pool[chosen], best_P[chosen], candidates=(pool, best_P))

    def explain(
        self, model: torch.nn.Module, rows_S: NDArray[np.int64], step_id: int, **kwargs: Any
    ) -> Explanation | None:
        """Returns which prompts' policy gradients agree with the steps of some rows. See the base class.

        The terms are cos(g(x), step(z)) / M of this update's prompts, in the set with the row's highest average.
        """
        scored, self._scored = self._scored, None
        return None if scored is None else scored[0].explained(model, rows_S, self._running, scored[1])

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float64]:
        """Returns the score of every row: (N,), NaN without a label. See the base class."""
        context: UpdateContext = kwargs["context"]
        generator = self.generator(context.update)
        every = candidate_rows(len(self.dataset), None, generator)
        best: NDArray[np.float64] = self._averages(model, context, every, generator).max(axis=1)
        return best

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums over the updates so far, and the rewards of the reference answers."""
        return {"running": self._running.state_dict(), "references": self.goal.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._running.load_state_dict(state["running"])
        self.goal.load_state_dict(state["references"])

    def _averages(
        self, model: torch.nn.Module, context: UpdateContext, pool: NDArray[np.int64], generator: np.random.Generator
    ) -> NDArray[np.float64]:
        """Draws new targets, scores ``pool`` and returns the averages over the updates, by rate and age: (P, J)."""
        targets = self.goal.targets(model, generator, f"{self.name}: step {context.step}")
        scores = GradientScores(self, self.settings, list(targets.values()), context)
        self._scored = scores, list(targets)
        found = scores.scores(model, pool)
        return self._running.add(pool, list(targets), found, context.learning_rate)
