"""Which rows of a run have their text in its record, and reading them. On rank 0."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.core.component import seeded
from dataflex.model.undisturbed import same_random_states
from dataflex.rows.arrow import is_stored
from dataflex.rows.columns import stored_parts, token_ids
from dataflex.rows.source_table import SourceTable
from dataflex.run.notable_rows import TimesChosen, by_score
from dataflex.run.row_texts import MOST, Decodes, RowTexts
from dataflex.trainer.host import Host

ALL = 2000
"""Rows of a dataset up to which all texts are written when training begins."""
_AT_ONCE = 64
_PATIENCE = 5.0  # seconds for that, where rows are made when they are read; the others then as if there were more


class RowRecording:
    """Writes the texts of rows.

    Args:
        trainer: The trainer.
        table: The sources of its rows.
    """

    def __init__(self, trainer: Host, table: SourceTable) -> None:
        self._trainer, self._table = trainer, table
        tokenizer = trainer.processing_class
        self.texts = RowTexts(trainer.output_dir, tokenizer) if isinstance(tokenizer, Decodes) else None
        self._times = TimesChosen(0)
        self._all = False

    def begin(self) -> None:
        """Opens the file where there is a tokenizer, and writes all rows where they are few."""
        if self.texts is None:
            return
        size = self._table.rows
        self.texts.begin(self._trainer.run_id, size)
        self._all = size is not None and size <= ALL and self._written_whole(size)
        if size is not None and not self._all:
            self._times = TimesChosen(size)
            for rows in self._trainer.record.chosen_rows():
                self._times.add(rows)

    def segment(
        self,
        step: int,
        rows: NDArray[np.int64],
        scores: NDArray[np.float64] | None,
        candidates: NDArray[np.float32] | None,
    ) -> None:
        """Writes the notable rows after a segment was planned, or trained on.

        Args:
            step: Steps done when it begins.
            rows: (S,) its rows.
            scores: (S,) their scores, if any.
            candidates: (N,) the scores of all rows that were scored, if known.
        """
        if self.texts is None or self._all or self._table.rows is None:
            return
        self._times.add(rows)
        generator = np.random.Generator(np.random.Philox(key=seeded(self._trainer.seed, "record", step)))
        found = [self._times.notable(generator)]
        if candidates is not None:
            found.append(by_score(None, candidates))
        elif scores is not None:
            found.append(by_score(rows, scores))
        self.add(np.concatenate(found))

    def add(self, rows: NDArray[np.int64]) -> None:
        """Writes the texts of rows that are not written yet, in their order, as long as there are not too many."""
        if self.texts is None or self._table.rows is None:
            return
        new = [row for row in np.unique(rows).tolist() if row not in self.texts.written]
        self._read(np.array(new[: max(0, MOST - len(self.texts.written))], dtype=np.int64))

    def _written_whole(self, size: int) -> bool:
        """Writes all rows, and returns whether there was time for it."""
        assert self.texts is not None
        stored = all(is_stored(part) for part, _ in stored_parts(self._trainer.train_dataset))
        missing = np.array([row for row in range(size) if row not in self.texts.written], dtype=np.int64)
        started = time.monotonic()
        for first in range(0, len(missing), _AT_ONCE):
            if not stored and time.monotonic() - started > _PATIENCE:
                return False
            self._read(missing[first : first + _AT_ONCE])
        return True

    def _read(self, rows: NDArray[np.int64]) -> None:
        if self.texts is None or not len(rows):
            return
        names = [self._table.names[number] for number in self._table.of(rows).tolist()]
        with same_random_states():  # a dataset may make its rows at random when they are read
            tokens: list[NDArray[Any]] = token_ids(self._trainer.train_dataset, rows)
        self.texts.add(rows, names, tokens)
