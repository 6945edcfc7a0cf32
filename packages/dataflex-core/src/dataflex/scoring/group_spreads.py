"""The spread of the rewards of a prompt's answers, added up by source: for a mixer, and for the record.

    spread of a prompt's answers = sqrt(mean of r^2 - (mean of r)^2)           over the answers of one generation

A group whose answers all have one reward has the spread 0, and teaches nothing: GRPO and RLOO compare the answers of a
prompt with each other.

Letters: K sources, G answers, P prompts of a generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.scoring.seen_rewards import SeenRewards, means, spreads

PROMPTS, ANSWERS, REWARDS, SPREADS, ALIKE = range(5)
"""The rows of :attr:`GroupSpreads.sums`: prompts, answers, sums of their means and of their spreads, and how many
of the prompts have answers of one reward only."""


class GroupSpreads:
    """Sums over the prompts that were sampled since the last :meth:`taken`. The same on every rank.

    Args:
        sources: K, the number of sources.

    Attributes:
        sums: (5, K) float64.
        first: The global step at which what is collected begins; None where nothing was collected.
    """

    def __init__(self, sources: int) -> None:
        self._sources = sources
        self.forget()

    def forget(self) -> None:
        """Begins anew."""
        self.sums: NDArray[np.float64] = np.zeros((5, self._sources))
        self.first: int | None = None

    def add(self, sums: NDArray[np.float64], step: int) -> None:
        """Adds a generation.

        Args:
            sums: (5, K) what :func:`of_generation` returned.
            step: Global optimizer steps done when it was sampled.
        """
        self.first = step if self.first is None else self.first
        self.sums += sums

    def taken(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Returns source -> what is known of its prompts, where it had any, and forgets it.

        Args:
            names: (K) the sources.
        """
        found, self.sums = self.sums, np.zeros((5, self._sources))
        self.first = None
        return {
            name: {
                "prompts": int(own[PROMPTS]),
                "answers": int(own[ANSWERS]),
                "reward": own[REWARDS] / own[PROMPTS],
                "spread": own[SPREADS] / own[PROMPTS],
                "alike": own[ALIKE] / own[PROMPTS],
            }
            for name, own in zip(names, found.T.tolist(), strict=True)
            if own[PROMPTS]
        }

    def means(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Returns the mean spread of each source's prompts, NaN where it had none, and its answers: (K,) each."""
        prompts_K = self.sums[PROMPTS]
        mean_K = np.full(self._sources, np.nan)
        np.divide(self.sums[SPREADS], prompts_K, out=mean_K, where=prompts_K > 0)
        return mean_K, self.sums[ANSWERS].astype(np.int64)

    def state_dict(self) -> dict[str, Any]:
        """Returns what was collected."""
        return {"sums": self.sums, "first": self.first}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.sums, self.first = np.array(state["sums"], dtype=np.float64), state["first"]


def of_generation(
    rows_G: NDArray[np.int64], rewards_G: NDArray[np.floating[Any]], sources_G: NDArray[np.int64], sources: int
) -> NDArray[np.float64]:
    """Returns the sums of :class:`GroupSpreads` over the prompts of a generation: (5, K).

    Args:
        rows_G: (G,) the prompt of each answer.
        rewards_G: (G,) its reward; one that is not finite is left out, and so is a prompt without any other.
        sources_G: (G,) the source of its prompt.
        sources: K.
    """
    rows_P, firsts_P, places_G = np.unique(rows_G, return_index=True, return_inverse=True)
    groups = SeenRewards(len(rows_P))
    groups.add(places_G, rewards_G, 0)
    found = groups.of(None, 0)
    there = found.counts > 0
    mean_P, spread_P = means(found)[there], spreads(found)[there]
    columns = (np.ones(len(mean_P)), found.counts[there], mean_P, spread_P, spread_P == 0)
    own = sources_G[firsts_P][there]
    return np.stack([np.bincount(own, column, minlength=sources).astype(np.float64) for column in columns])
