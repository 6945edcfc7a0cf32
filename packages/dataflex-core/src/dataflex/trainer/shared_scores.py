"""The scores that the components of a run share, where its rows are planned and have numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.core.component import Component
from dataflex.core.errors import blaming
from dataflex.core.score_names import COLUMN, SEEN, SELECTOR, ScoreName
from dataflex.planning.sources import are_streams
from dataflex.rows.score_columns import ScoreColumns
from dataflex.rows.views import MixedSources
from dataflex.scoring.named_scores import NamedScores
from dataflex.scoring.score_sources import fixed_sources
from dataflex.scoring.seen_losses import SeenLosses
from dataflex.trainer.host import Host


class SharedScores:
    """Makes the scores of the run and keeps them with its checkpoints.

    Args:
        trainer: The trainer, with its components.
        kept: Column -> (N,) numbers of the raw data, kept when its rows were made; None for none.
        before: The train dataset that the trainer was given, of which it may have removed columns.

    Raises:
        ConfigError: On every rank: a column or a file that rows are scored by cannot be read, or is not of these rows.

    Attributes:
        seen: The losses that training has seen; None where nobody takes them.
    """

    def __init__(self, trainer: Host, kept: Mapping[str, NDArray[np.float64]] | None, before: Any) -> None:
        self._trainer = trainer
        rows = trainer.train_dataset
        numbered = not (isinstance(rows, MixedSources) and are_streams(rows)) and trainer.components.stages is not None
        self.seen = SeenLosses(len(rows)) if numbered and self._takes_seen() else None
        self._scores: NamedScores | None = None
        if numbered:
            columns = ScoreColumns(rows, kept, before, joins=vars(trainer.args).get("packing") is True)
            sources = fixed_sources(rows, columns)
            rewards = None if trainer.rollouts is None else trainer.rollouts.rewards
            self._scores = NamedScores(
                rows, trainer.scoring_collator, trainer.accelerator, seen=self.seen, rewards=rewards, sources=sources
            )
            self._scores.prepare(*self._read_first())

    def at_update(self) -> NamedScores | None:
        """Returns the scores, of the model as it is now. Collective."""
        if self._scores is not None:
            self._scores.begin_update(self._trainer.model, self._trainer.state.global_step)
        return self._scores

    def gather(self) -> None:
        """Brings the losses that each rank has seen to all. Collective."""
        if self.seen is not None:
            self.seen.gather(self._trainer.accelerator)

    def forget(self) -> None:
        """Forgets what an earlier training by the same trainer has seen."""
        if self.seen is not None:
            self.seen.forget()

    def state_dict(self) -> dict[str, Any]:
        """Returns what goes into a checkpoint, after :meth:`gather`."""
        scores, seen = self._scores, self.seen
        return {
            "scores": None if scores is None else scores.state_dict(),
            "seen_losses": None if seen is None else seen.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        if self._scores is not None:
            self._scores.load_state_dict(state["scores"])
        if self.seen is not None:
            self.seen.load_state_dict(state["seen_losses"])

    def _read_first(self) -> list[str]:
        """Returns the names of scores that must be there before training: what cannot be read is refused then."""
        names: list[str] = []
        for part, component in self._trainer.components:
            if isinstance(component, Component):
                with blaming(part.component.in_words):
                    names += [f"{COLUMN}:{column}" for column in component.needs_columns(part.component.params)]
            if part.by is not None and part.by != SELECTOR:
                names.append(part.by)
        return list(dict.fromkeys(names))

    def _takes_seen(self) -> bool:
        order = self._trainer.spec.order
        by_seen = order is not None and order.by is not None and ScoreName.of(order.by).kind == SEEN
        return by_seen or any(isinstance(each, Component) and each.takes_seen for _, each in self._trainer.components)
