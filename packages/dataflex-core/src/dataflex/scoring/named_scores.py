"""The scores of rows that several components want at one update, each computed once.

A filter by loss, an order by loss and the selector ``loss`` ask for the loss of rows at the same update: the model goes
over the rows once. What was computed is kept for the update, row by row, so who asks for other rows pays for those that
are missing only. Scores that never change (a length, a column, a file) are made once per run.

    loss           mean token loss under the present model                 one pass over the rows that are missing
    seen           the loss that training saw last, however old            no pass
    seen:STEPS     that, where it is at most so many steps old             a pass over the other rows
    length         tokens of the row
    column:NAME    a column of the train dataset, or of the raw data
    file:PATH      a number per row, from a file
    reward         where rows are prompts: mean reward of the answers that training sampled, NaN for none; no rollout
    reward:spread  their standard deviation

Memory: 5 bytes per row and update for losses, 8 for each of the others. Letters: N rows of the train dataset, S rows
that are asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.context import SEEN_ONLY, PassOptions, RowRewards
from dataflex.core.errors import ComponentError, listed, nearest
from dataflex.core.score_names import LOSS, REWARD, SEEN, SPREAD, ScoreName
from dataflex.rows.views import rows_within
from dataflex.scoring.fixed_scores import FixedScores
from dataflex.scoring.losses import per_sample_losses
from dataflex.scoring.passes.row_pass import Collator
from dataflex.scoring.score_sources import ScoreSource, fixed_sources, loss_store
from dataflex.scoring.seen_losses import SeenLosses
from dataflex.scoring.seen_rewards import SeenRewards, means, spreads

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["SEEN_ONLY", "NamedScores", "PassOptions"]

T = TypeVar("T", np.bool_, np.float32)
_FEW = 1 / 16  # share of the rows up to which row numbers are sorted


@dataclass
class _Update:
    """An update, and what was computed at it."""

    model: torch.nn.Module | None = None
    step: int = 0
    done: NDArray[np.bool_] | None = None  # (N,)
    losses: NDArray[np.float32] | None = None  # (N,)


class NamedScores:
    """Scores by name, for all components of a run. Collective: every rank calls it alike and gets the same.

    Args:
        dataset: The train dataset, tokenised, with a length.
        collator: Makes a batch of tensors from a list of rows, as scoring calls it.
        accelerator: The run's accelerator; None means a single process.
        seen: The losses that training saw; None where the run keeps none.
        rewards: The rewards that training sampled; None where it samples no answers.
        sources: Kind -> what makes scores that never change; None for those of the table above without kept columns
            (:func:`~dataflex.scoring.score_sources.fixed_sources`).
    """

    def __init__(
        self,
        dataset: Any,
        collator: Collator,
        accelerator: Accelerator | None = None,
        *,
        seen: SeenLosses | None = None,
        rewards: SeenRewards | None = None,
        sources: Mapping[str, ScoreSource] | None = None,
    ) -> None:
        self._dataset, self._collator, self._accelerator = dataset, collator, accelerator
        self._seen, self._rewards = seen, rewards
        self._fixed = FixedScores(len(dataset), fixed_sources(dataset) if sources is None else sources, accelerator)
        self._update = _Update()
        self._rows: NDArray[np.int64] | None = None  # the rows of the dataset that are rows here

    def __len__(self) -> int:
        """Rows that have numbers here."""
        return len(self._dataset) if self._rows is None else len(self._rows)

    def provide(self, kind: str, source: ScoreSource) -> None:
        """Adds scores that never change under a name of one's own, ``KIND`` or ``KIND:ARGUMENT``.

        Args:
            kind: What stands in front of the colon.
            source: ``source(argument)`` returns the score of every row: (N,) float64, NaN for none.
        """
        self._fixed.sources[kind] = source

    def begin_update(self, model: torch.nn.Module, step: int) -> None:
        """Forgets what was computed at the update before, and gathers what training has seen since.

        Called at each update, before any component is asked. Collective.

        Args:
            model: The model that scores, as a selector gets it.
            step: Optimizer steps done.
        """
        self._update.model, self._update.step = model, step
        self._update.done = self._update.losses = None
        if self._seen is not None:
            self._seen.gather(self._accelerator)

    def within(self, rows_S: NDArray[np.int64]) -> NamedScores:
        """Returns these scores for a component that is made on some rows: its row ``i`` is ``rows_S[i]`` here."""
        part = copy.copy(self)  # what is computed is shared
        part._rows = self._numbers(np.asarray(rows_S, dtype=np.int64))
        return part

    def are_of(self, dataset: Any) -> bool:
        """Returns whether the rows here are those of a dataset, one by one: the train dataset, a source, a view."""
        if self._rows is None and dataset is self._dataset:
            return True
        rows = rows_within(dataset, self._dataset)
        if rows is None or len(rows) != len(self):
            return False
        return bool(np.array_equal(rows, np.arange(len(rows)) if self._rows is None else self._rows))

    def of(
        self,
        name: str,
        rows_S: NDArray[np.int64] | None = None,
        *,
        max_age: int = 0,
        how: PassOptions | None = None,
    ) -> NDArray[np.float64]:
        """Returns the scores of rows: (S,) float64, NaN where there is none.

        A row that was never seen has NaN with ``SEEN_ONLY``; :meth:`ages` tells it from a row without labels.

        Args:
            name: See above.
            rows_S: (S,) row numbers; None for all rows.
            max_age: Of ``loss``: losses that training saw at most so many optimizer steps ago are taken as they are,
                the others are computed; 0 computes all, :data:`SEEN_ONLY` none.
            how: How a pass is made, where one is needed.

        Raises:
            ConfigError: A column or file cannot be read or is of other rows.
            CheckpointError: It holds other numbers than when the checkpoint was written.
            ComponentError: There is no such name; a loss is not finite; seen losses are wanted and none are kept.
        """
        asked = ScoreName.of(name)
        rows_S = self._numbers(rows_S)
        if asked.kind == SEEN:
            age = SEEN_ONLY if not asked.argument else _steps(name, asked.argument)
            return self._losses(rows_S, age, how or PassOptions())
        if name == LOSS:
            return self._losses(rows_S, max_age, how or PassOptions())
        if name in (REWARD, SPREAD):
            found = self._sampled().of(rows_S, self._update.step)
            return means(found) if name == REWARD else spreads(found)
        values_N = self._of_all(name)
        return values_N if rows_S is None else values_N[rows_S]

    def rewards(self, rows_S: NDArray[np.int64] | None = None) -> RowRewards:
        """Returns the rewards of the answers that training has sampled for rows, which are prompts: (S,) each.

        Args:
            rows_S: (S,) row numbers; None for all rows.

        Raises:
            ComponentError: Training samples no answers.
        """
        return self._sampled().of(self._numbers(rows_S), self._update.step)

    def ages(self, rows_S: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Returns how many optimizer steps ago training saw the loss of each row: (S,), at least 1; -1 for never.

        Raises:
            ComponentError: The run keeps no seen losses.
        """
        rows_S = self._numbers(rows_S)
        steps = self._kept().steps if rows_S is None else self._kept().steps[rows_S]
        return np.where(steps < 0, -1, self._update.step - steps.astype(np.int64))

    def prepare(self, *names: str) -> None:
        """Makes scores that never change, so that what cannot be read is refused before training; see :meth:`of`."""
        for name in names:
            asked = ScoreName.of(name)
            if asked.kind == SEEN:
                self._kept()
            elif asked.kind == REWARD:
                self._sampled()
            elif name != LOSS:
                self._of_all(name)

    def state_dict(self) -> dict[str, Any]:
        """Returns digests of the columns and files that were read: a resumed run must read the same."""
        return {"fixed": self._fixed.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned. What was read already is compared at once.

        Raises:
            CheckpointError: It holds other numbers.
        """
        self._fixed.load_state_dict(state["fixed"])

    def _numbers(self, rows_S: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
        """Returns the rows of the whole train dataset that are meant; None for all of it."""
        if self._rows is None or rows_S is None:
            return self._rows if rows_S is None else np.asarray(rows_S, dtype=np.int64)
        return self._rows[rows_S]

    def _losses(self, rows_S: NDArray[np.int64] | None, max_age: int, how: PassOptions) -> NDArray[np.float64]:
        missing = self._missing(rows_S, max_age)
        if len(missing):
            self._compute(missing, how)
        done, losses = self._update.done, self._update.losses
        if max_age:
            seen = self._kept().losses
            if done is None or losses is None:
                return _picked(seen, rows_S).astype(np.float64)
            found_S = np.where(_picked(done, rows_S), _picked(losses, rows_S), _picked(seen, rows_S))
            return found_S.astype(np.float64)
        return (
            np.empty(0) if losses is None else _picked(losses, rows_S).astype(np.float64)
        )  # None: no row is asked for

    def _missing(self, rows_S: NDArray[np.int64] | None, max_age: int) -> NDArray[np.int64]:
        """Returns the rows whose loss has to be computed, ascending and each once."""
        if max_age >= SEEN_ONLY:
            self._kept()
            return np.empty(0, dtype=np.int64)
        done, size = self._update.done, len(self._dataset)
        if rows_S is not None and len(rows_S) < size * _FEW:
            rows = np.unique(rows_S)
            rows = rows if done is None else rows[~done[rows]]
        else:
            wanted_N = np.ones(size, dtype=np.bool_) if rows_S is None else _marked(rows_S, size)
            rows = np.flatnonzero(wanted_N if done is None else wanted_N & ~done)
        if max_age:
            steps = self._kept().steps[rows]
            rows = rows[(steps < 0) | (self._update.step - steps > max_age)]
        return rows

    def _compute(self, missing: NDArray[np.int64], how: PassOptions) -> None:
        update, size = self._update, len(self._dataset)
        model, step, rows = update.model, update.step, None if len(missing) == size else missing
        assert model is not None, "begin_update comes first"
        found = per_sample_losses(
            model,
            self._dataset,
            collator=self._collator,
            accelerator=self._accelerator,
            indices=rows,
            token_budget=how.token_budget,
            desc=f"{how.who}: losses at step {step}",
            store=loss_store(model, self._dataset, self._accelerator, rows, step, how),
        )
        if update.done is None or update.losses is None:
            update.done, update.losses = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.float32)
        update.losses[missing], update.done[missing] = found, True

    def _kept(self) -> SeenLosses:
        if self._seen is None:
            raise ComponentError(
                "the run keeps no losses that training has seen, because no component says that it takes them -> set "
                "takes_seen = True in the class that asks for them, or use scores: fresh"
            )
        return self._seen

    def _sampled(self) -> SeenRewards:
        if self._rewards is None:
            raise ComponentError(
                "the run has no rewards: its trainer samples no answers -> train with TRL's GRPOTrainer or "
                "RLOOTrainer, or use scores that its rows have"
            )
        return self._rewards

    def _of_all(self, name: str) -> NDArray[np.float64]:
        """Returns scores that never change, of all rows: (N,), not to be written to."""
        kind = ScoreName.of(name).kind
        if kind not in self._fixed.sources:
            allowed = [LOSS, SEEN, REWARD, SPREAD, *self._fixed.sources]
            way_out = nearest(kind, allowed) or "use one of these"
            raise ComponentError(f"there are no scores {name!r}, only {listed(allowed)} -> {way_out}")
        return self._fixed.of(name)


def _picked(values_N: NDArray[T], rows_S: NDArray[np.int64] | None) -> NDArray[T]:
    return values_N if rows_S is None else values_N[rows_S]


def _marked(rows_S: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    marked_N = np.zeros(size, dtype=np.bool_)
    marked_N[rows_S] = True
    return marked_N


def _steps(name: str, argument: str) -> int:
    if not (argument.isdecimal() and int(argument) > 0):
        raise ComponentError(f"there are no scores {name!r} -> write seen:STEPS with a whole number of at least 1")
    return int(argument)
