"""Prompts by how much the rewards of their answers are expected to spread: for GRPO, RLOO and their like.

These compare the answers to one prompt with each other. Where all answers have the same reward, because the prompt is
too hard or too easy by now, their advantages are 0 and the rollout taught nothing (DAPO, Yu et al. 2025, arXiv
2503.14476, section 3.2). With 0/1 rewards of success rate p the gradient's size goes with the variance p(1-p), which is
highest at p = 1/2 (Sun et al. 2025, arXiv 2506.05316).

    rewards that training sampled -> a belief of each prompt's p, or variance -> the highest expected, or drawn, spread

No answer is sampled for this: the rewards are those of the prompts that training saw, with their age. What is not yet
known of a prompt is explored, by Thompson sampling (a draw from the belief takes its mean's place) or by an optimistic
value for prompts that were never sampled. With ``neighbours`` a prompt that was never sampled borrows from those most
like it that were, as in arXiv 2506.05316, without the adapter that is trained there: likeness is that of words.

The formulas stand in :mod:`dataflex_selectors.parts.reward_beliefs`. DAPO's own remedy, to sample more prompts
and throw away those whose answers are alike, costs the rollouts that are thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from dataflex.core.context import RunAhead, UpdateContext
from dataflex.core.cost import Ahead, Cost, Work
from dataflex.core.errors import ComponentError
from dataflex.core.parameter_checks import between, count, count_or_null, one_of, positive, require
from dataflex.core.registry import register_selector
from dataflex.train.selector.base_selector import Selection, Selector
from numpy.typing import NDArray

from dataflex_selectors.parts.enough import require_enough
from dataflex_selectors.parts.neighbours import nearest
from dataflex_selectors.parts.prompt_vectors import prompt_vectors
from dataflex_selectors.parts.ranking import first_places
from dataflex_selectors.parts.reward_beliefs import Evidence, Remembered, drawn, expected, lent, optimistic

if TYPE_CHECKING:
    import torch

EXPLORE = ("thompson", "optimistic")
_BYTES = 6 * 8  # of a row: what is remembered, and what the run had seen at the last look


@register_selector("reward_spread")
class RewardSpreadSelector(Selector):
    """Takes the prompts whose answers are expected to differ most in reward.

    Args:
        target: The success rate that is looked for, where rewards are 0 or 1; 0.5 has the largest spread.
        explore: thompson: by a draw from what is believed of each prompt; optimistic: by what is expected, and prompts
            that were never sampled first.
        max_age: Optimizer steps after which a prompt counts as never sampled; null for never.
        prior: Rewards that the belief before the first one counts as.
        decay: How much earlier rewards of a prompt still count when newer ones have come; 1 keeps all.
        neighbours: How many prompts that were sampled lend to one that was not; 0 for none.
        dim: Of neighbours: numbers of a prompt's vector.
        **run: What every selector is given, see :class:`~dataflex.interfaces.selector.Selector`.

    Raises:
        ConfigError: A parameter is out of its range; the message holds all that are.
    """

    takes_rewards = True

    def __init__(
        self,
        *,
        target: float = 0.5,
        explore: str = "thompson",
        max_age: int | None = None,
        prior: float = 2.0,
        decay: float = 0.5,
        neighbours: int = 0,
        dim: int = 256,
        **run: Any,
    ) -> None:
        super().__init__(**run)
        require(
            "reward_spread selector",
            between("target", target, 0.01, 0.99),
            one_of("explore", explore, EXPLORE),
            count_or_null("max_age", max_age, null="rewards of any age"),
            positive("prior", prior),
            between("decay", decay, 0, 1),
            count("neighbours", neighbours, least=0),
            count("dim", dim),
        )
        self.target, self.explore, self.max_age = float(target), explore, max_age
        self.prior, self.decay = float(prior), float(decay)
        self.neighbours, self.dim = neighbours, dim
        self._remembered = Remembered(len(self.dataset), self.decay)
        self._vectors_ND: NDArray[np.float32] | None = None

    @classmethod
    def cost(cls, params: Mapping[str, Any], ahead: Ahead) -> Cost:
        """No pass of a model, and no answer is sampled. See the base class."""
        rows, lends = ahead.rows.rows, bool(params["neighbours"])
        width = params["dim"] if lends else 0
        work = Work(ngrams=ahead.rows, products=rows * rows * width / 4) if lends and ahead.due() else Work()
        if lends and not ahead.due():
            work = Work(products=rows * rows * width / 4)  # at most: half of the rows were sampled, half were not
        return Cost(work, host_bytes=(_BYTES + 4 * width) * rows, state_bytes=_BYTES * rows)

    def check_run(self, model: torch.nn.Module, run: RunAhead) -> None:
        """Refuses fewer prompts than an update asks for. See the base class."""
        size = len(self.dataset)
        require_enough(run.most_rows, size, size, "are there", "give more prompts")

    def select(self, model: torch.nn.Module, step_id: int, num_samples: int, **kwargs: Any) -> Selection:
        """Returns the ``num_samples`` prompts with the largest spread, and what is expected as their scores.

        Raises:
            ComponentError: The run has no rewards; there are fewer prompts; a target, and rewards beside 0 and 1.
        """
        context: UpdateContext = kwargs["context"]
        found = self._evidence(context)
        require_enough(num_samples, len(self.dataset), len(self.dataset), "are there", "give more prompts")
        generator = self.generator(context.update)
        expected_N = expected(found, self.prior, self.target)
        if self.explore == "thompson":
            value_N = drawn(found, self.prior, self.target, generator)
        else:
            value_N = optimistic(found, self.prior, self.target)
        rows = first_places(num_samples, -value_N, generator.random(len(value_N)))
        return Selection(rows, expected_N[rows], candidates=expected_N)

    def scores(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> NDArray[np.float64]:
        """Returns the spread that is expected of each prompt: (N,). See the base class."""
        return expected(self._evidence(kwargs["context"]), self.prior, self.target)

    def state_dict(self) -> dict[str, Any]:
        """Returns what is remembered of the prompts."""
        return dict(self._remembered.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self._remembered.load_state_dict(state)

    def _evidence(self, context: UpdateContext) -> Evidence:
        if context.scores is None:
            raise ComponentError("the run has no rewards of prompts -> use it with TRL's GRPOTrainer or RLOOTrainer")
        rewards = context.scores.rewards()
        if not rewards.binary and self.target != 0.5:
            raise ComponentError(
                f"target: {self.target:g} is a rate of success, and there are rewards beside 0 and 1 -> leave target "
                "out, or give each answer the reward 0 or 1"
            )
        found = self._remembered.look(rewards, self.max_age)
        return self._lent(found) if self.neighbours else found

    def _lent(self, found: Evidence) -> Evidence:
        if found.there.all() or not found.there.any():
            return found
        if self._vectors_ND is None:
            self._vectors_ND = prompt_vectors(self.dataset, self.dim)
        # The vector of a prompt without words is 0, and that would be nearer to most than they are to each other.
        says_N = self._vectors_ND.any(axis=1)
        there, missing = np.flatnonzero(found.there & says_N), np.flatnonzero(~found.there & says_N)
        if not len(there) or not len(missing):
            return found
        distance_MK, near_MK = nearest(self._vectors_ND[missing], self._vectors_ND[there], self.neighbours)
        return lent(found, missing, there[near_MK], 1 - distance_MK**2 / 2)  # of vectors of length 1
