"""NICE: LESS, aimed at what the model's own answers earn instead of at the loss of reference answers.

NICE Data Selection for Instruction Tuning in LLMs with Non-differentiable Evaluation Metric (ICML 2025). Prompts of the
evaluation set -> answers of the model under its present weights -> a reward for each -> the gradient that would earn
more -> the rows whose training step points that way.

    y_s ~ pi(.|x),  s = 1..S                                          answers to a prompt x
    R_s = r(x, y_s, y_ref)                                            text, reward model or judge
    g(x) = sum over the answers kept of R_s grad NLL(y_s | x)         the negative policy gradient; by default of all
    s_tj(z) = mean over the prompts x of set j of cos(g(x), step_t(z))  as LESS from here on
    S_j(z) = gamma S_j(z) + lr_t s_tj(z);   score = max_j S_j(z)

It is for metrics that cannot be differentiated. It costs S generated answers per prompt and update, besides what LESS
costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.errors import Problem, blaming
from dataflex.core.parameter_checks import count_or_null, require
from dataflex.core.ranks.agreement import on_every_rank
from dataflex.core.registry import register_selector
from dataflex.scoring import read_target
from dataflex.scoring.trial import try_gradients
from dataflex.train.selector.base_selector import Selection, Selector
from numpy.typing import NDArray

from dataflex_selectors.engines import whole_weights
from dataflex_selectors.enough import require_candidates, require_labelled
from dataflex_selectors.gradient_scores import GradientScores, GradientSettings, require_optimizer
from dataflex_selectors.nice.goal import PolicyGoal, Rules
from dataflex_selectors.nice.sampling import Sampling
from dataflex_selectors.nice.settings import RewardSettings
from dataflex_selectors.pick import pick, picking_problems
from dataflex_selectors.pool import candidate_rows
from dataflex_selectors.running import RunningScores

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


@register_selector("nice")
class NiceSelector(Selector):
    """Takes the rows whose training step makes the model's own answers to the evaluation set earn more.

    Args:
        dataset, accelerator, data_collator: As every selector is given them.
        eval_dataset: Prompts and reference answers: a tokenised dataset, or several by name. A row's score is that for
            the set it suits best.
        cache_dir: Keeps what a long scoring pass has computed, so that an interrupted run goes on from there.
        tokenizer: The run's tokenizer, which turns prompts and answers into text.
        prompts: Prompts of each evaluation set drawn afresh at each update; null for all.
        samples: Answers drawn for each prompt.
        max_new_tokens: Most tokens of an answer.
        temperature: Of drawing answers.
        top_k: Most tokens to draw the next one from; 0 for all.
        top_p: Share of the probability to draw the next token from.
        reward: exact_match or contains compare with the reference answer; model asks reward_model; endpoint asks a
            judge.
        reward_model: Folder or name of a reward model, a sequence classifier with one output.
        endpoint: Base address of an OpenAI-compatible server.
        endpoint_model: Name of the model there.
        api_key_env: Name of the environment variable that holds the key; null where none is needed.
        instruction: What the judge is told, instead of the default; it must ask for a number from 0 to 10.
        show_reference: Whether the judge sees the reference answer too.
        timeout: Seconds that a request may take as a whole.
        attempts: Most requests for one mark.
        concurrency: Requests at a time.
        reject: Whether answers with less reward than the reference answer are dropped.
        keep: Most answers of a prompt that count, the best; null for all.
        baseline: Whether the mean reward of a prompt's answers is taken off each.
        fallback: What to do with a prompt none of whose answers count: with none it is a vector of 0 in the mean over
            the prompts, reference aims at its reference answer.
        gradient_type: adam compares the step that the optimizer would take, with its epsilon where torch has it
            (Adam, AdamW, NAdam, RAdam); sgd the gradient itself.
        proj_dim: Sketch gradients to this many numbers; null compares them whole.
        decay: What an update leaves of the scores of those before; 1 sums them up, 0 forgets them.
        mode: topk takes the highest scores, sample draws by them, quota lets the target sets choose in turn.
        draw_temperature: Of mode sample: below 1 sharpens, above 1 softens.
        candidates: Rows drawn afresh at each update to choose from; null for all.
        token_budget: Tokens whose gradients are formed at once; null for a default that suits the device.
        sampling_tokens: Tokens of prompts and answers generated at once; null for a default that suits the device.

    Raises:
        ConfigError: A parameter is out of its range, missing or of no use, there is no evaluation set or tokenizer, the
            engine shards weights, or the reward model cannot be loaded.
    """

    reads_batches = True

    def __init__(
        self,
        dataset: Any,
        eval_dataset: Any,
        accelerator: Accelerator,
        data_collator: Callable[[list[Any]], Mapping[str, torch.Tensor]],
        cache_dir: str,
        tokenizer: Any,
        prompts: int | None = None,
        samples: int = 20,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int = 50,
        top_p: float = 0.95,
        reward: str = "exact_match",
        reward_model: str | None = None,
        endpoint: str | None = None,
        endpoint_model: str | None = None,
        api_key_env: str | None = None,
        instruction: str | None = None,
        show_reference: bool = False,
        timeout: float = 60.0,
        attempts: int = 5,
        concurrency: int = 8,
        reject: bool = False,
        keep: int | None = None,
        baseline: bool = False,
        fallback: str = "none",
        gradient_type: str = "adam",
        proj_dim: int | None = None,
        decay: float = 0.9,
        mode: str = "topk",
        draw_temperature: float = 1.0,
        candidates: int | None = None,
        token_budget: int | None = None,
        sampling_tokens: int | None = None,
    ) -> None:
        super().__init__(dataset, accelerator, data_collator, cache_dir)
        settings = GradientSettings(gradient_type, proj_dim, token_budget)
        sampling = Sampling(samples, max_new_tokens, temperature, top_k, top_p, sampling_tokens)
        rules = Rules(prompts, keep, reject, baseline, fallback)
        rewards = RewardSettings(
            reward, reward_model, endpoint, endpoint_model, api_key_env, instruction, show_reference, timeout, attempts,
            concurrency,
        )  # fmt: skip
        target = read_target(eval_dataset)
        require(
            "nice selector",
            target.problem,
            *_generating(tokenizer, accelerator),
            *settings.problems(),
            *picking_problems(decay, mode, draw_temperature, key="draw_temperature"),
            count_or_null("candidates", candidates, null="all"),
            *sampling.problems(),
            *rules.problems(),
            *rewards.problems(),
        )
        self.settings, self.mode, self.draw_temperature, self.candidates = settings, mode, draw_temperature, candidates
        self.goal = PolicyGoal(target.sets, tokenizer, accelerator, sampling, rules, rewards.build(accelerator))
        self._running = RunningScores(len(target.sets), float(decay))

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

        on_every_rank(self.accelerator, alone)  # the reward is asked for by all together, or by none
        self.goal.check_reward()

    def check_optimizer(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Refuses an optimizer without the moments that ``gradient_type: adam`` needs. See the base class."""
        require_optimizer(model, optimizer, self.settings, self.accelerator)

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
        live_J = np.isfinite(scores_PJ).any(axis=0)  # a set that never had a target has nothing to choose by
        scores_PJ = scores_PJ[:, live_J] if live_J.any() else scores_PJ
        chosen = pick(scores_PJ, num_samples, self.mode, self.draw_temperature, generator, pool)
        return Selection(pool[chosen], scores_PJ[chosen].max(axis=1))

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
        """Aims anew, scores ``pool`` and returns the averages over the updates, by rate and age: (P, J)."""
        targets = self.goal.targets(model, generator, f"{self.name}: step {context.step}")
        found = GradientScores(self, self.settings, list(targets.values()), context).scores(model, pool)
        return self._running.add(pool, list(targets), found, context.learning_rate)


def _generating(tokenizer: Any, accelerator: Accelerator | None) -> list[Problem | None]:
    """Returns what keeps the run from generating answers and reading them."""
    way_out = "pass processing_class"
    missing = Problem("tokenizer", "the run has none, and prompts and answers must be read", way_out)
    whole = whole_weights(accelerator, "answers are generated with all of them")
    return [missing if tokenizer is None else None, whole]
