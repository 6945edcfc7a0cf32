"""Which rows of a run have their text in its record, and reading them. On rank 0.

Decoding takes a fraction of a millisecond a row. At each segment a few rows are written, so that a run that is killed
leaves some. Of a small dataset all rows are: while training goes on, in 0.2 % of its time, and what is left when it has
ended.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dataflex.core.component import seeded
from dataflex.model.undisturbed import same_random_states
from dataflex.planning.selecting import Candidates
from dataflex.rows.arrow import is_stored
from dataflex.rows.columns import Tokens, stored_parts, token_ids
from dataflex.rows.prompt_texts import prompt_texts
from dataflex.rows.source_table import SourceTable
from dataflex.run.notable_rows import TimesChosen, by_score
from dataflex.run.row_texts import MOST, Decodes, RowTexts
from dataflex.trainer.host import Host

ALL = 2000
"""Rows of a dataset up to which all texts are written."""
_SHARE = 0.002  # of the time of training that is spent on them
_READ, _DECODED = 64, 16  # rows at a time
_ENDS = 8  # rows of a small dataset with the highest and lowest scores, at each segment
_PATIENCE, _HURRY = 10.0, 1.0  # seconds that the rest may take when training has ended, and when it was broken off


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
        self._unread: deque[int] = deque()  # of a small dataset
        self._undecoded: deque[tuple[int, Tokens | str]] = deque()
        self._since = self._spent = 0.0

    def begin(self) -> None:
        """Opens the file, where there is a tokenizer."""
        if self.texts is None:
            return
        size = self._table.rows
        self.texts.begin(self._trainer.run_id, size)
        self._since, self._spent = time.monotonic(), 0.0
        self._all = size is not None and size <= ALL
        if size is not None and self._all:
            self._unread.extend(row for row in range(size) if row not in self.texts.written)
        elif size is not None:
            self._times = TimesChosen(size)
            for rows in self._trainer.record.chosen_rows():
                self._times.add(rows)

    def segment(
        self,
        step: int,
        rows: NDArray[np.int64],
        scores: NDArray[np.float64] | None,
        candidates: Candidates | None,
    ) -> None:
        """Writes the notable rows after a segment was planned, or trained on.

        Args:
            step: Steps done when it begins.
            rows: (S,) its rows.
            scores: (S,) their scores, if any.
            candidates: The scores of all rows that were chosen from, if known.
        """
        if self.texts is None or self._table.rows is None:
            return
        if self._all:
            self._add(np.unique(rows)[: 2 * _ENDS] if scores is None else by_score(rows, scores, _ENDS))
            self.go_on()
            return
        self._times.add(rows)
        generator = np.random.Generator(np.random.Philox(key=seeded(self._trainer.seed, "record", step)))
        found = [self._times.notable(generator)]
        if candidates is not None:
            found.append(by_score(candidates.rows, candidates.scores))
        elif scores is not None:
            found.append(by_score(rows, scores))
        self.add(np.concatenate(found))

    def add(self, rows: NDArray[np.int64]) -> None:
        """Writes the texts of rows of a large dataset that are not written yet, in their order, up to a bound."""
        if not self._all:
            self._add(rows)

    def _add(self, rows: NDArray[np.int64]) -> None:
        if self.texts is None or self._table.rows is None:
            return
        new = [row for row in np.unique(rows).tolist() if row not in self.texts.written]
        own = np.array(new[: max(0, MOST - len(self.texts.written))], dtype=np.int64)
        self._write(list(zip(own.tolist(), self._read(own), strict=True)))

    def go_on(self) -> None:
        """Writes some rows of a small dataset, if there is time for it."""
        while self._unread or self._undecoded:
            started = time.monotonic()
            if self._spent > _SHARE * (started - self._since):
                return
            self._some()
            self._spent += time.monotonic() - started

    def finish(self, broken_off: bool) -> None:
        """Training has ended: writes the others, and puts all in their order.

        Args:
            broken_off: Whether it ended before its time: then there may be little, and rows are read from storage only.
        """
        stored = all(is_stored(part) for part, _ in stored_parts(self._trainer.train_dataset))
        until = time.monotonic() + (_HURRY if broken_off else _PATIENCE)
        while (self._unread or self._undecoded) and (stored or not broken_off) and time.monotonic() < until:
            self._some()
        if self.texts is not None and self._all:
            self.texts.sort()

    def _some(self) -> None:
        if not self._undecoded:
            rows = np.array([self._unread.popleft() for _ in range(min(_READ, len(self._unread)))], dtype=np.int64)
            self._undecoded.extend(zip(rows.tolist(), self._read(rows), strict=True))
        self._write([self._undecoded.popleft() for _ in range(min(_DECODED, len(self._undecoded)))])

    def _read(self, rows: NDArray[np.int64]) -> Sequence[Tokens | str]:
        with same_random_states():  # a dataset may make its rows at random when they are read
            if self._trainer.rollouts is not None:
                return prompt_texts(self._trainer.train_dataset, rows) if len(rows) else []
            return token_ids(self._trainer.train_dataset, rows) if len(rows) else []

    def _write(self, found: list[tuple[int, Tokens | str]]) -> None:
        if self.texts is not None and found:
            numbers = self._table.of(np.array([row for row, _ in found], dtype=np.int64))
            self.texts.add([(row, self._table.names[k], ids) for (row, ids), k in zip(found, numbers, strict=True)])
