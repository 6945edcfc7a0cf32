"""What a run leaves on disk besides its decisions: how far it is, what its time went to, what it logged, its warnings.

Everything here is read off the run on the side, on rank 0: no collective is called, nothing is drawn from a random
generator, and no row is looked at that is not asked for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.core.errors import StoppedError
from dataflex.core.schedule import Segment
from dataflex.planning.decisions import Plan
from dataflex.planning.run_schedule import rows_of_steps
from dataflex.planning.selecting import Candidates
from dataflex.rows.source_table import SourceTable
from dataflex.rows.split_sources import SplitSources
from dataflex.run.heard_warnings import HeardWarnings
from dataflex.run.run_clock import RunClock
from dataflex.run.run_facts import (
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    dataset_name,
    now,
    one_line,
    read_facts,
    what_runs,
    write_facts,
)
from dataflex.trainer.clustered_rows import save_sources
from dataflex.trainer.host import Host
from dataflex.trainer.row_recording import RowRecording
from dataflex.trainer.trained_tokens import TrainedTokens
from dataflex.utils.logging import logger
from dataflex.utils.secret_values import remember

_BETWEEN = 1.0  # seconds between two writings for lines of the log
SCORED = 10**7
"""Rows of a dataset up to which the scores of the last update are saved: 40 MB."""
_LONG = 16  # characters from which on a value of the environment may be a key, and is not a word of somebody's text


class Recording:
    """Keeps the facts, the metrics and the segments of a run.

    Args:
        trainer: The trainer.

    Attributes:
        clock: What the time goes to.
    """

    def __init__(self, trainer: Host) -> None:
        self._trainer = trainer
        self.clock = RunClock()
        self._warnings = HeardWarnings()
        self._status = RUNNING
        self._error: str | None = None
        self._facts: dict[str, Any] | None = None  # what does not change; None before training and on other ranks
        self._starts: list[Any] = []
        self._written = 0.0
        self._told = False  # that it has gaps

    def begin(self) -> None:
        """Training begins, or goes on from a checkpoint. On rank 0, once the record has been opened.

        Raises:
            OSError: Nothing can be written there.
        """
        trainer, step = self._trainer, self._trainer.state.global_step
        remember({key: value for key, value in os.environ.items() if _may_be_a_key(key, value)})
        before = read_facts(trainer.output_dir, trainer.run_id)
        self._table = SourceTable(trainer.train_dataset, dataset_name(trainer.spec), trainer.row_sources)
        trainer.record.row_sources(self._table.names, self._table.codes, trainer.run_id)
        if isinstance(trainer.train_dataset, SplitSources):
            save_sources(Path(trainer.output_dir), trainer.train_dataset)
        self._tokens = TrainedTokens(self._table, max(1, round(self._batch)))
        self._resume_tokens(step)
        self._texts = RowRecording(trainer, self._table)
        self._texts.begin()
        self._starts = [*_list(before.get("starts")), {"step": step, "at": now()}]
        self._warnings.join(_list(before.get("warnings")))
        self._status, self._error = RUNNING, None
        self._facts = {
            "run": trainer.run_id,
            **what_runs(trainer.spec),
            "total_steps": trainer.state.max_steps,
            "updates": trainer.schedule.updates,
            "batch": self._batch,
            "world_size": trainer.accelerator.num_processes,
            "rows": self._table.rows,
            "sources": self._table.described(),
        }
        seconds = before.get("seconds")
        self.clock.begin(seconds if isinstance(seconds, Mapping) else {})
        self._write()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside of it, training goes on: its warnings are heard, and how it ends is written down. On every rank."""
        self._facts = None
        self._warnings.forget()
        try:
            with self._warnings.listening():
                yield
        except (StoppedError, KeyboardInterrupt) as error:
            self._ended(STOPPED, error)
            raise
        except BaseException as error:
            self._ended(FAILED, error)
            raise
        state = self._trainer.state
        self._ended(FINISHED if state.global_step >= state.max_steps else STOPPED)

    def logged(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Writes down what was logged. On every rank.

        Args:
            lines: The new lines of the trainer's log.
        """
        if self._facts is None:
            return
        total = self.clock.total()
        with self._while_there_is_room():
            self._trainer.record.metrics([_first(line, total) for line in lines])
            if self._status != RUNNING or time.monotonic() - self._written >= _BETWEEN:
                self._write()
                self._texts.go_on()

    def planned(self, segment: Segment, plan: Plan) -> None:
        """Writes down what was planned for a segment. On every rank."""
        if self._facts is None:
            return
        rows, scored = plan.chosen.rows, [each for each in plan.decisions if each.candidates is not None]
        candidates = scored[-1].candidates if scored else None  # the one that chooses comes after those that filter
        with self._while_there_is_room():
            if candidates is not None:
                self._save_scores(candidates, segment.start, scored[-1].name)
            self._texts.segment(segment.start, rows, plan.chosen.scores, candidates)
            self._segment(segment.start, segment.steps, rows, segment.update)

    def trained_on(self, start: int, steps: int, rows: NDArray[np.int64]) -> None:
        """Writes down what a run without a plan has trained on in a stretch of steps. On every rank."""
        if self._facts is None:
            return
        with self._while_there_is_room():
            self._texts.segment(start, rows, None, None)
            self._segment(start, steps, rows, None)

    def targets(self, ids: Mapping[tuple[str, int], Sequence[int]]) -> None:
        """Writes the texts of target rows that explanations name: (set, row) -> its tokens. On every rank."""
        if self._facts is not None and self._texts.texts is not None:
            for (name, target), tokens in sorted(ids.items()):
                self._texts.texts.add_target(name, target, tokens)

    def measured(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Writes lines of weights and losses, and the texts of the rows that they name. On every rank."""
        for line in lines:
            self._trainer.record.update(line)
            named = [row for row, _ in (*line.get("most", ()), *line.get("least", ()))]
            if self._facts is not None and named:
                with self._while_there_is_room():
                    self._texts.add(np.array(named, dtype=np.int64))

    def target(self, name: str, target: int, ids: Sequence[int] | NDArray[Any]) -> None:
        """Writes the text of a target row, once. On every rank.

        Args:
            name: The evaluation set.
            target: The number of the row in it.
            ids: (T,) its tokens.
        """
        if self._facts is not None and self._texts.texts is not None:
            with self._while_there_is_room():
                self._texts.texts.add_target(name, target, ids)

    @contextmanager
    def _while_there_is_room(self) -> Iterator[None]:
        """Inside of it, files may fail to be written: a run does not end for what is only looked at. Said once."""
        try:
            yield
        except OSError as error:
            if not self._told:
                logger.warning("the record of this run has gaps, as it cannot be written: %s", error)
            self._told = True

    def _segment(self, start: int, steps: int, rows: NDArray[np.int64], update: int | None) -> None:
        """Writes down what a file of selections holds, and how far the run is. On rank 0, while training.

        Args:
            start: Steps done when the segment begins.
            steps: How many it has.
            rows: (S,) its rows, in the order of training.
            update: The update that chose them; None for none.
        """
        lengths = self._tokens.add(start, steps, rows)
        self._trainer.record.segment_line(
            {
                "step": start,
                "file": f"step_{start:08d}.npz",
                "steps": steps,
                "rows": len(rows),
                "distinct": len(np.unique(rows)),
                "tokens": None if lengths is None else int(lengths.sum()),
                "update": update,
                "sources": self._table.counted(rows, lengths),
            }
        )
        self._write()

    def _resume_tokens(self, step: int) -> None:
        """Takes up the count of tokens where the run goes on."""
        trainer, done = self._trainer, step
        now = None if trainer.segments is None or step == 0 else trainer.segments.now
        if now is not None and now.start < step:
            done = now.start
        elif trainer.trained_rows is not None and trainer.trained_rows.start is not None:
            done = trainer.trained_rows.start
        self._tokens.begin(trainer.record.segment_lines(), done)
        if now is not None and done < step:
            self._tokens.add(now.start, now.steps, trainer.segments.chosen.rows)

    def _save_scores(self, candidates: Candidates, step: int, component: str) -> None:
        size = self._table.rows
        if size is not None and size <= SCORED:
            self._trainer.record.scores(candidates.of_all(size), step, self._trainer.run_id, component)

    @property
    def _batch(self) -> int | float:
        rollouts = self._trainer.rollouts
        return rows_of_steps(self._trainer.args).shown if rollouts is None else rollouts.step_rows.shown

    def _ended(self, status: str, error: BaseException | None = None) -> None:
        self.clock.stop()
        if self._facts is None:
            return
        self._status, self._error = status, None if error is None else one_line(error)
        with self._while_there_is_room():
            self._write()
            self._texts.finish(broken_off=error is not None)

    def _write(self) -> None:
        assert self._facts is not None
        step = self._trainer.state.global_step
        own = {
            "status": self._status,
            "error": self._error,
            "starts": self._starts,
            "updated": now(),
            "step": step,
            "seconds": self.clock.seconds(),
            "tokens": self._tokens.at(step),
            "warnings": self._warnings.lines(),
        }
        write_facts(self._trainer.output_dir, self._facts | own)
        self._written = time.monotonic()


def _first(line: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Returns a line of the log with the step and the seconds in front."""
    return {"step": line.get("step"), "seconds": seconds} | dict(line)


def _may_be_a_key(name: str, value: str) -> bool:
    """Returns whether a variable of the environment may hold a key, and no folder: ``PWD`` sounds like a password."""
    return len(value) >= _LONG and name not in ("PWD", "OLDPWD") and not os.path.exists(value)


def _list(found: Any) -> list[dict[str, Any]]:
    """Returns the mappings of what should be a list of them: the file may be damaged."""
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
