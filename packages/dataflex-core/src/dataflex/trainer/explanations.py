"""Why rows have their scores and weights: which rows are asked about, who is asked, and what is written of it.

At each update every selector that chose or filtered is asked about some of its rows, right after the plan is made; a
weighter is asked about some rows when its weights are logged, every :data:`WEIGHT_STEPS` steps and at the end. Nothing
here changes the run: a component explains itself with the model in eval mode and random states put back, and its answer
goes into the record alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sized
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.core.component import Component
from dataflex.core.errors import ComponentError, blaming
from dataflex.core.explain import Explanation
from dataflex.core.schedule import Segment
from dataflex.model.undisturbed import undisturbed
from dataflex.objective.samples import Rows
from dataflex.planning.answers import checked_explanation, checked_sets
from dataflex.planning.decisions import Decision, Plan
from dataflex.planning.selecting import Chosen
from dataflex.planning.sources import are_streams
from dataflex.rows.views import MixedSources
from dataflex.scoring.passes.budget import release_memory
from dataflex.trainer.host import Host
from dataflex.trainer.trained_rows import gathered
from dataflex.utils.logging import logger
from dataflex.utils.progress import Progress

WEIGHT_STEPS = 100
"""Steps after which a weighter is asked again, at a line of its weights. 16 rows and steps of 8 rows: below 1 %."""

Ask = Callable[[], Explanation | None]


class Explanations:
    """Asks the components of a run, and writes ``dataflex_why.jsonl``. Its methods are called on every rank.

    Args:
        trainer: The trainer.

    Attributes:
        rows: ``explain_rows``: of each component and update; 0 asks nobody.
    """

    def __init__(self, trainer: Host) -> None:
        self._trainer = trainer
        self.rows = trainer.spec.arguments.explain_rows

    def of_plan(self, plan: Plan, segment: Segment, rows: NDArray[np.int64] | None = None) -> Plan:
        """Asks the selectors that decided at an update why rows have their scores. The model is undisturbed.

        Args:
            plan: What was decided.
            segment: The segment that it is for.
            rows: The rows to ask about, each selector about those that it chooses from; None: those with the highest
                and the lowest scores of what each has chosen.

        Returns:
            The plan, with the seconds that this took among the details of its decisions.

        Raises:
            ComponentError: A component gave a bad answer, or raised.
        """
        if not self.rows or segment.update is None:
            return plan
        decisions = [self._of_decision(decision, segment, segment.update, rows) for decision in plan.decisions]
        return replace(plan, decisions=decisions)

    def of_weights(self, line: Mapping[str, Any]) -> None:
        """Asks the weighter why rows have their weights, where that is due. Called between two steps.

        Args:
            line: What the trace says of the weights since the last line. ``most`` and ``least``, pairs of row and
                weight, say which rows; without them it is those of the last step.
        """
        done, total = self._trainer.state.global_step, self._trainer.state.max_steps
        due = done >= total or (done - line["steps"]) // WEIGHT_STEPS != done // WEIGHT_STEPS
        weighter, rows = self._trainer.components.weighter, self._trainer.train_dataset
        streams = not isinstance(rows, Sized) or (isinstance(rows, MixedSources) and are_streams(rows))
        if not self.rows or not due or streams or not isinstance(weighter, Component) or not type(weighter).explains():
            return
        asked = self._weighed(line)
        if not len(asked):
            return
        started, who = time.perf_counter(), f"weighter '{line['component']}', explaining weights at step {done}"
        context = self._trainer.training_objective.context

        def ask() -> Explanation | None:
            with undisturbed(self._trainer.model):
                answer = weighter.explain(self._trainer.model, asked, done, context=context, dataset=rows)
            return checked_explanation(answer, count=len(asked), who=who)

        found = self._asked(ask, who)
        if found is not None:
            seconds = round(time.perf_counter() - started, 4)
            head = {"step": line["step"], "update": None, "kind": "weight", "component": line["component"]}
            self._write(head, "weight", asked, found, seconds)

    def _of_decision(
        self, decision: Decision, segment: Segment, update: int, rows: NDArray[np.int64] | None
    ) -> Decision:
        started, parts = time.perf_counter(), []
        what = "filter" if decision.verb == "filter" else "selector"
        who = f"{what} '{decision.name}', explaining its choice at update {update} (step {segment.start})"
        able = [placed for placed in decision.placed if placed.explains]
        there = [(placed, chosen) for placed in able if (chosen := placed.answered(update)) is not None]
        for number, (placed, chosen) in enumerate(there):
            count = max(1, self.rows // len(there) + (number < self.rows % len(there)))
            asked = extremes(chosen, count) if rows is None else placed.own(rows)
            if len(asked):
                found = self._asked(partial(placed.explain, self._trainer.model, asked, who), who)
                parts.append((asked, found))
        answers = [(asked, found) for asked, found in parts if found is not None]
        if not answers:
            return decision
        seconds = round(time.perf_counter() - started, 4)
        head = {"step": segment.start, "update": update, "kind": decision.verb, "component": decision.name}
        for asked, found in answers:
            self._write(head, "score", asked, found, seconds)
        return replace(decision, details={**decision.details, "explain_seconds": seconds})

    def _asked(self, ask: Ask, who: str) -> Explanation | None:
        """Returns the checked answer; None where there is none, or where the memory did not suffice for it.

        With several ranks an error for want of memory is not caught: the others wait for this one in a pass.
        """
        try:
            with blaming(who), Progress(who, bar=None):
                found = ask()
                if found is not None:
                    checked_sets(found, known=self._trainer.components.target_sets, who=who)
                return found
        except ComponentError as error:
            if self._trainer.accelerator.num_processes > 1 or not isinstance(error.__cause__, torch.OutOfMemoryError):
                raise
        release_memory(self._trainer.accelerator.device)
        logger.warning("%s: the memory does not suffice for it, so nothing is written -> explain_rows: 0", who)
        return None

    def _weighed(self, line: Mapping[str, Any]) -> NDArray[np.int64]:
        """Returns the rows to ask a weighter about: (S,), none where samples are no rows. Collective."""
        extreme = [int(row) for row, _ in [*line.get("most", ()), *line.get("least", ())]]
        batches = self._trainer.batch_rows
        last = [rows for rows in batches.of_step if rows is not None]
        documents = any(batches.flattened) or not isinstance(self._trainer.training_objective.context.samples, Rows)
        if documents or not last or len(last) < len(batches.of_step):
            return np.empty(0, dtype=np.int64)
        found = extreme or np.concatenate(gathered(last, self._trainer.accelerator)).tolist()
        return np.array(list(dict.fromkeys(found))[: self.rows], dtype=np.int64)

    def _write(
        self, head: Mapping[str, Any], what: str, rows: NDArray[np.int64], found: Explanation, seconds: float
    ) -> None:
        lines = []
        for row, score, pulls in zip(rows.tolist(), found.scores.tolist(), found.pulls, strict=True):
            targets = [{"set": p.set, "target": int(p.target), "share": _rounded(p.share)} for p in pulls]
            line = {**head, "row": row, what: _rounded(score), "seconds": seconds, "targets": targets}
            lines.append(line | ({"note": found.note} if found.note else {}))
        self._trainer.record.why(lines)
        self._trainer.recording.targets(found.targets)


def extremes(chosen: Chosen, count: int) -> NDArray[np.int64]:
    """Returns the rows with the highest scores, and then those with the lowest: (S,) different ones, S <= count.

    Of rows without any scores, the first and the last in the order that they were chosen in.
    """
    rows, first = np.unique(chosen.rows, return_index=True)
    scores = -first.astype(np.float64) if chosen.scores is None else chosen.scores[first]
    rows, scores = rows[~np.isnan(scores)], scores[~np.isnan(scores)]
    order = rows[np.argsort(-scores, kind="stable")]
    if len(order) <= count:
        return order
    high = count - count // 2
    return np.concatenate([order[:high], order[len(order) - (count - high) :]])


def _rounded(number: float) -> float | None:
    """Returns a number with 9 digits: the order in which it was added up does not show. None where it is not finite."""
    return float(f"{number:.9g}") if np.isfinite(number) else None
