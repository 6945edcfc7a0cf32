"""What a component receives at an update, beyond its fixed arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

SEEN_ONLY = 2**63 - 1
"""The ``max_age`` that takes the losses that training has seen, however old, without a pass of the model."""


@dataclass(frozen=True)
class PassOptions:
    """How a pass of the model is made, where one is needed for the scores that a component asks for.

    Attributes:
        token_budget: Tokens that are scored at once; None for a default that suits the device.
        who: What a progress bar or a log line begins with.
        cache_dir: Where an interrupted pass is kept, so that it goes on from there; blank for nowhere.
        owner: Whose passes these are in a shared ``cache_dir``: the ``cache_owner`` of the component.
    """

    token_budget: int | None = None
    who: str = "scores"
    cache_dir: str = ""
    owner: str = ""


@dataclass(frozen=True)
class RowRewards:
    """What is known of the rewards of rows that are prompts, summed over all answers that training has sampled.

    Attributes:
        sums: (S,) float64 sum of the rewards.
        squares: (S,) float64 sum of their squares.
        counts: (S,) int64 how many there are; 0 where none was sampled.
        ages: (S,) int64 optimizer steps since the last of them, at least 1; -1 for never.
        binary: Whether every reward of the run so far is 0 or 1.
    """

    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    counts: NDArray[np.int64]
    ages: NDArray[np.int64]
    binary: bool


class RowScores(Protocol):
    """Scores of rows that several components want at one update, each computed once.

    The run has one, :class:`~dataflex.scoring.named_scores.NamedScores`. A selector is given one whose rows are those
    of its dataset. Every method is collective: each rank calls it with the same arguments and gets the same.
    """

    def __len__(self) -> int:
        """Rows that have numbers here."""

    def are_of(self, dataset: Any) -> bool:
        """Returns whether the rows here are those of a dataset, one by one.

        A component that somebody made on other rows than the run gave it cannot use their scores.
        """

    def of(
        self,
        name: str,
        rows_S: NDArray[np.int64] | None = None,
        *,
        max_age: int = 0,
        how: PassOptions | None = None,
    ) -> NDArray[np.float64]:
        """Returns the scores of rows: (S,) float64, NaN for a row without one. See docs/scores.md for the names.

        Args:
            name: ``loss``, ``length``, ``seen``, ``seen:STEPS``, ``column:NAME`` or ``file:PATH``; where rows are
                prompts, ``reward``, ``reward:spread``, ``column:NAME`` or ``file:PATH``.
            rows_S: (S,) row numbers of the component's dataset; None for all of its rows.
            max_age: Of ``loss``: a loss that training saw at most so many optimizer steps ago is taken as it is, and
                the others are computed; 0 computes all, :data:`SEEN_ONLY` computes none.
            how: How a pass is made, where one is needed.
        """

    def within(self, rows_S: NDArray[np.int64]) -> RowScores:
        """Returns these scores for a component that is made on some rows: its row ``i`` is ``rows_S[i]`` here."""

    def rewards(self, rows_S: NDArray[np.int64] | None = None) -> RowRewards:
        """Returns the rewards of the answers that training has sampled for rows, which are prompts: (S,) each.

        Args:
            rows_S: (S,) row numbers of the component's dataset; None for all of its rows.
        """

    def ages(self, rows_S: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Returns how many optimizer steps ago training saw the loss of each row: (S,), at least 1; -1 for never."""


@dataclass(frozen=True)
class RunAhead:
    """What is known of a run before its first step. Passed to :meth:`~dataflex.core.component.Component.check_run`.

    Attributes:
        updates: Number of updates of the whole run.
        total_steps: Global optimizer steps of the whole run.
        most_rows: Most rows that one update asks a selector for; 0 where no update asks for rows.
        step_rows: Rows of an optimizer step, over all ranks; of prompts whose answers serve several steps, those of the
            first of these.
        shared_out: Whether a mixture shares the rows of an update out among its sources, each with a selector of its
            own, which may then always be asked for fewer than ``most_rows``.
    """

    updates: int
    total_steps: int
    most_rows: int
    step_rows: int = 1
    shared_out: bool = False


@dataclass(frozen=True)
class UpdateContext:
    """The state of the run at an update. Passed to ``select``, ``mix`` and ``arrange`` as the keyword ``context``.

    Attributes:
        update: Number of this update, from 0. An order over the run gets how often it has arranged before, so that
            it draws anew each time, also when a pass ends between two updates.
        updates: Number of updates of the whole run.
        step: Global optimizer steps done.
        total_steps: Global optimizer steps of the whole run.
        learning_rate: The rate that the last step used.
        optimizer: The training optimizer, for its moments. A component must not change it.
        scores: Scores of rows that the run's components share; None where the run has none to share.
        device_batch: Rows that a rank puts through the model at once in training; they are padded to one length.
        steps: Optimizer steps until the next update, for which rows are asked.
        step_rows: Rows of an optimizer step, over all ranks; of prompts whose answers serve several steps, those of the
            first of these.
        explains: Whether a selector is asked to explain itself after it has decided, so that it may keep what that
            takes; see :meth:`~dataflex.core.component.Component.explain`.
    """

    update: int
    updates: int
    step: int
    total_steps: int
    learning_rate: float
    optimizer: torch.optim.Optimizer | None
    scores: RowScores | None = None
    device_batch: int = 1
    steps: int = 1
    step_rows: int = 1
    explains: bool = False
