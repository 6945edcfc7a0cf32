"""The segments of a planned run: which one is trained on, what it trains on, and what is recorded of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.core.decision_hash import decision_hash
from dataflex.core.errors import CheckpointError, StoppedError
from dataflex.core.ranks.agreement import require_agreement
from dataflex.core.schedule import Segment
from dataflex.discovery.plugins import call_hook
from dataflex.model.undisturbed import undisturbed
from dataflex.planning.decisions import Plan
from dataflex.planning.planner import Planner
from dataflex.planning.run_schedule import rows_of_steps
from dataflex.planning.selecting import Chosen
from dataflex.planning.stages import Stages
from dataflex.run.run_length import require_continues
from dataflex.run.score_summary import summary
from dataflex.run.tracked_numbers import update_histograms, update_metrics
from dataflex.trainer.host import Host
from dataflex.trainer.run_lines import say_update
from dataflex.trainer.trackers import send_histograms

_NONE = Chosen(np.empty(0, dtype=np.int64))


class Segments:
    """Plans a segment when its first batch is asked for, and keeps it until the next one.

    Args:
        trainer: The trainer, with its schedule.
        stages: The components that decide.

    Attributes:
        step_rows: How many rows optimizer steps take, over all ranks.
        now: The segment that is trained on; None before the first.
        chosen: Its rows.
    """

    def __init__(self, trainer: Host, stages: Stages) -> None:
        self._trainer, self._stages = trainer, stages
        stages.updates = trainer.schedule.updates > 0
        self.step_rows = rows_of_steps(trainer.args) if trainer.rollouts is None else trainer.rollouts.step_rows
        self.now: Segment | None = None
        self.chosen = _NONE
        self._state_checked = False
        self._more_updates = 0  # those that a continued run has beyond its schedule

    def forget(self) -> None:
        """Forgets the rows of an earlier training by the same trainer."""
        self.now, self._more_updates = None, 0

    def at(self, step: int) -> Segment:
        """Returns the segment that holds the step after ``step`` steps are done.

        It is the schedule's, but for a run that was ended inside of a segment and is continued: what was planned stays,
        and what the longer schedule adds to that segment is a segment of its own. Decisions that stand are kept for
        it; else the components are asked once more, and the updates after it are counted from there. Where the answers
        to earlier prompts last for all of it, there is nothing to ask.
        """
        held, planned = self.now, self._trainer.schedule.segment_at(step)
        if held is not None and held.start <= step < held.stop:
            return held
        update, more = planned.update, self._more_updates
        if planned.start < step and held is not None and held.stop == step:
            planned = replace(planned, start=step)
            if not self._new_rows(planned):
                return replace(planned, update=None)
            more, update = more + 1, None if self._stages.stand else update
        return replace(planned, update=None if update is None else update + more)

    def rows(self, segment: Segment) -> NDArray[np.int64]:
        """Returns the rows of a segment, planned unless it is the one that was resumed in. Called on every rank.

        Raises:
            CheckpointError: The checkpoint lies inside of it, and does not hold its rows.
            ComponentError: A component gave a bad answer, or ranks disagree.
        """
        if segment == self.now:  # resumed in the middle of it
            return self.chosen.rows
        trainer, schedule = self._trainer, self._trainer.schedule
        if trainer.state.global_step != segment.start:
            raise CheckpointError(
                f"the checkpoint at step {trainer.state.global_step} lies inside of the segment from {segment.start} "
                f"to {segment.stop} but does not hold its rows -> resume from an earlier checkpoint"
            )
        left = self._left(segment)
        if not self._new_rows(segment):
            self.now, self.chosen = segment, Chosen(left)
            return left
        more = self._more_updates
        if segment.update is not None:
            more = segment.update - (schedule.segment_at(segment.start).update or 0)
        context = trainer.update_context(segment.update or 0, schedule.updates + more, schedule.total)
        context = replace(context, steps=segment.steps)

        def before(verb: str, name: str) -> None:
            call_hook("dataflex_before_update", kind=verb, component=name, context=context)

        def agree(digest: str, who: str) -> None:
            require_agreement(digest, trainer.accelerator, who)

        started, model = time.perf_counter(), trainer.model
        count = self._new_rows(segment)
        done, _ = self.step_rows.done(segment.start - schedule.segment_at(segment.start).start)
        try:
            with undisturbed(model):
                planned = Planner(self._stages, segment, context, model, before, agree).plan(count, done)
                plan: Plan = trainer.explanations.of_plan(planned, segment)
        except StoppedError:
            raise trainer.stopped_while_deciding() from None
        if segment.update is not None and not self._state_checked:  # what it keeps may be there from now on
            trainer.early.state()
            self._state_checked = True
        chosen = Chosen(np.concatenate([left, plan.chosen.rows])) if len(left) else plan.chosen
        self.now, self.chosen, self._more_updates = segment, chosen, more
        trainer.record.segment(segment.start, plan.chosen.rows, plan.chosen.scores, plan.chosen.weights)
        trainer.recording.planned(segment, plan)
        lines = list(self._lines(segment, plan, time.perf_counter() - started))
        self._report(segment, lines)
        for line, _ in lines:
            names = {"kind": line["kind"], "component": line["component"]}
            call_hook("dataflex_after_update", **names, context=context, decision=line)
        return chosen.rows

    def _new_rows(self, segment: Segment) -> int:
        """Returns how many rows a segment needs beside those whose answers it still trains on as it begins."""
        served = self.step_rows.served(segment.start)
        return self.step_rows.of(segment.steps, served) - (self.step_rows.rows if served else 0)

    def _left(self, segment: Segment) -> NDArray[np.int64]:
        """Returns the rows whose answers a segment still trains on, where a run was ended inside of a generation."""
        served = self.step_rows.served(segment.start)
        return self.chosen.rows[-self.step_rows.rows :] if served else _NONE.rows

    def state_dict(self) -> dict[str, Any]:
        """Returns the schedule, and the rows of the segment that is being trained on."""
        segment = self.now
        return {
            "schedule": asdict(self._trainer.schedule),
            "segment": None if segment is None else [segment.start, segment.stop, segment.update],
            "segment_rows": self.chosen.rows,
            "segment_weights": self.chosen.weights,
            "more_updates": self._more_updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.now = None if state["segment"] is None else Segment(*state["segment"])
        self.chosen = Chosen(state["segment_rows"], None, state["segment_weights"])
        self._more_updates = state["more_updates"]

    def require_continues(self, state: Mapping[str, Any], step: int) -> None:
        """Refuses a checkpoint of another schedule than this one, or than a shorter one of the same kind."""
        require_continues(state["schedule"], self._trainer.schedule, step, "the checkpoint")

    def _lines(self, segment: Segment, plan: Plan, seconds: float) -> Iterator[tuple[dict[str, Any], str]]:
        """Yields a line of the trace for each decision, and what the log says of it."""
        alone = len(self._trainer.spec.axes) == 1
        for decision in plan.decisions:
            decided = plan.chosen.rows if decision.decided is None else decision.decided
            line = {
                "step": segment.start,
                "kind": decision.verb,
                "component": decision.name,
                "update": segment.update,
                "num_samples": decision.rows,
                "distinct": decision.rows if decision.verb == "filter" else len(np.unique(decided)),
                "seconds": round(seconds if alone else decision.seconds, 4),
                "decision_hash": decision_hash(decided),
                **decision.details,
            }
            if decision.left_out:
                line["left_out"] = decision.left_out
            if decision.scores is not None:
                line["scores"] = summary(decision.scores)
            if decision.candidates is not None:
                line["candidates"] = summary(decision.candidates.scores)
            yield line, decision.news

    def _report(self, segment: Segment, lines: Sequence[tuple[dict[str, Any], str]]) -> None:
        """Tells the trace, the trackers and the reader what was decided at an update."""
        if not lines:  # no update, or one at which every axis rests
            return
        trainer, found, alone = self._trainer, [line for line, _ in lines], len(self._trainer.spec.axes) == 1
        for line in found:
            trainer.record.update(line)
        trainer.log(update_metrics(found, alone))
        if trainer.is_world_process_zero():
            send_histograms(trainer.callback_handler.callbacks, update_histograms(found, alone), segment.start)
        say_update(trainer, segment, self._more_updates, lines)
