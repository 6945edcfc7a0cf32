"""The mixin of runs whose rows are planned: selecting and mixing."""

from __future__ import annotations

import functools
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sized
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, SequentialSampler

from dataflex.config.spec import RunSpec
from dataflex.core.agreement import require_agreement
from dataflex.core.component import Component, seeded
from dataflex.core.context import UpdateContext
from dataflex.core.errors import CheckpointError, StoppedError, blaming
from dataflex.core.plugins import call_hook
from dataflex.core.schedule import Segment
from dataflex.planning.answers import decision_hash
from dataflex.planning.loader import PlannedLoader
from dataflex.planning.run_schedule import global_batch_size, require_map_style, run_schedule
from dataflex.rows.row_numbers import NumberedRows, NumberingCollator
from dataflex.rows.views import PlannedRows
from dataflex.run.length import require_continues
from dataflex.run.record import summary
from dataflex.scoring.session import undisturbed
from dataflex.trainer.forwards import ObjectiveTrainer
from dataflex.trainer.given import require_spec
from dataflex.trainer.workers import outliving_sigterm
from dataflex.utils.logging import logger
from dataflex.utils.progress import Progress


@dataclass(frozen=True)
class Plan:
    """The rows of a segment and how they were decided.

    Attributes:
        rows: (S,) row numbers of the train dataset, in the order of training.
        scores: (S,) their scores, where the component gave any.
        details: More keys for the trace line.
        news: What the log line says of it.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float64] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    news: str = ""


class PlannedTrainer(ObjectiveTrainer):
    """Trains on rows that are planned segment by segment. See :mod:`dataflex.planning.loader` for why this works."""

    verb: str = "plan"
    stands: bool = False
    """Whether more rows can be planned from the last decision, where a continued run has its segment made longer."""

    def __init__(self, *args: Any, dataflex: RunSpec, **kwargs: Any) -> None:
        kwargs = self.named(args, kwargs)
        require_spec(dataflex, self.kind)
        require_map_style(kwargs.get("train_dataset"), self.kind.train_type)
        super().__init__(dataflex=dataflex, **kwargs)
        self._dataflex_global_batch_size = global_batch_size(self.args)
        self.schedule = run_schedule(dataflex, self.args, self.train_dataset)
        self.args.max_steps = self.schedule.total
        self.args.ignore_data_skip = True  # the loader itself starts at the right step
        self._dataflex_segment: Segment | None = None
        self._dataflex_rows: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._dataflex_state_checked = False
        self._dataflex_more_updates = 0  # those that a continued run has beyond its schedule

    @abstractmethod
    def decide(self, segment: Segment, count: int, context: UpdateContext, who: str) -> Plan:
        """Returns the plan of a segment. Called on every rank with the model undisturbed.

        Args:
            segment: The stretch to plan.
            count: Rows it needs.
            context: The state of the run.
            who: The component, the update and the step, for messages.
        """

    def get_train_dataloader(self) -> Any:
        """Returns the one loader of the run, a :class:`~dataflex.planning.loader.PlannedLoader`."""
        dataset, collate = self.train_dataset, self.data_collator
        # Which columns are unused is read off the model's forward: now, as an engine may wrap the model later.
        if isinstance(dataset, datasets.Dataset):
            dataset = self._remove_unused_columns(dataset, description="training")
        else:
            collate = self._get_collator_with_removed_columns(collate, description="training")
        return PlannedLoader(
            schedule=self.schedule,
            dataset=self._dataflex_examples(),
            accumulation=self.args.gradient_accumulation_steps,
            global_batch_size=self._dataflex_global_batch_size,
            position=lambda: self.state.global_step,
            plan=self._dataflex_plan,
            batches=functools.partial(self._dataflex_batches, dataset, self.tokens.counting(collate)),
            segment_at=self._dataflex_segment_at,
        )

    def begin_record(self) -> None:
        """Also forgets the rows of an earlier training by the same trainer."""
        if self._dataflex_folder.begins_anew:
            self._dataflex_segment, self._dataflex_more_updates = None, 0
        super().begin_record()

    def epoch_at(self, step: int) -> float | None:
        """Returns the epoch of the schedule."""
        return self.schedule.epoch_at(step)

    def dynamic_state(self) -> dict[str, Any]:
        """Adds the schedule, and the rows of the segment that is being trained on."""
        segment = self._dataflex_segment
        bounds = None if segment is None else [segment.start, segment.stop, segment.update]
        planned = {"segment": bounds, "segment_rows": self._dataflex_rows, "more_updates": self._dataflex_more_updates}
        return super().dynamic_state() | {"schedule": asdict(self.schedule)} | planned

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores the component and the segment."""
        require_continues(state["schedule"], self.schedule, state["step"], "the checkpoint")
        super().restore(state)
        self._dataflex_segment = None if state["segment"] is None else Segment(*state["segment"])
        self._dataflex_rows, self._dataflex_more_updates = state["segment_rows"], state["more_updates"]

    def _dataflex_segment_at(self, step: int) -> Segment:
        """Returns the segment that holds the step after ``step`` steps are done.

        It is the schedule's, but for a run that was ended inside of a segment and is continued: what was planned stays,
        and what the longer schedule adds to that segment is a segment of its own. A decision that stands is kept for
        it; else the component is asked once more, and the updates after it are counted from there.
        """
        held, planned = self._dataflex_segment, self.schedule.segment_at(step)
        if held is not None and held.start <= step < held.stop:
            return held
        update, more = planned.update, self._dataflex_more_updates
        if planned.start < step and held is not None and held.stop == step:
            planned, more = replace(planned, start=step), more + 1
            update = None if self.stands else update
        return replace(planned, update=None if update is None else update + more)

    def _dataflex_plan(self, segment: Segment) -> NDArray[np.int64]:
        if segment == self._dataflex_segment:  # resumed in the middle of it
            return self._dataflex_rows
        if self.state.global_step != segment.start:
            raise CheckpointError(
                f"the checkpoint at step {self.state.global_step} lies inside of the segment from {segment.start} to "
                f"{segment.stop} but does not hold its rows -> resume from an earlier checkpoint"
            )
        more = self._dataflex_more_updates
        if segment.update is not None:
            more = segment.update - (self.schedule.segment_at(segment.start).update or 0)
        context = self._dataflex_context(segment.update or 0, self.schedule.updates + more, self.schedule.total)
        count = segment.steps * self._dataflex_global_batch_size
        who = self._dataflex_who(segment)
        names = {"kind": self.verb, "component": self._dataflex_component_name()}
        if segment.update is not None:
            call_hook("dataflex_before_update", **names, context=context)
        started = time.perf_counter()
        assert isinstance(self.model, torch.nn.Module)
        try:
            with undisturbed(self.model), blaming(who), Progress(self._dataflex_what(segment), bar=None):
                plan = self.decide(segment, count, context, who)
        except StoppedError:
            raise self._dataflex_stop.while_deciding() from None
        digest = decision_hash(plan.rows)
        require_agreement(digest, self.accelerator, who)
        if segment.update is not None and not self._dataflex_state_checked:  # what it keeps may be there from now on
            self._dataflex_early.state()
            self._dataflex_state_checked = True
        self._dataflex_segment, self._dataflex_rows, self._dataflex_more_updates = segment, plan.rows, more
        self._dataflex_folder.record.segment(segment.start, plan.rows, plan.scores)
        if segment.update is not None:
            line = {
                "step": segment.start,
                **names,
                "update": segment.update,
                "num_samples": count,
                "distinct": len(np.unique(plan.rows)),
                "seconds": round(time.perf_counter() - started, 4),
                "decision_hash": digest,
                **plan.details,
            }
            if isinstance(self.component, Component) and self.component.left_out:
                line["left_out"] = self.component.left_out
            if plan.scores is not None:
                line["scores"] = summary(plan.scores)
            self._dataflex_report(line, plan.news)
            call_hook("dataflex_after_update", **names, context=context, decision=line)
        return plan.rows

    def _dataflex_report(self, line: dict[str, Any], news: str) -> None:
        """Tells the trace, the metrics and the reader about an update."""
        self._dataflex_folder.record.update(line)
        metrics = {"dataflex/update": line["update"], "dataflex/seconds": line["seconds"]}
        metrics |= {f"dataflex/score_{key}": value for key, value in line.get("scores", {}).items()}
        metrics |= {f"dataflex/proportion/{name}": share for name, share in line.get("proportions", {}).items()}
        self.log(metrics)
        left = self.schedule.updates + self._dataflex_more_updates - 1 - line["update"]
        logger.info(
            "update %d at step %d, %s: %s '%s' %s in %.1f s",
            line["update"], line["step"], f"{left} more to come" if left else "the last one", self.verb,
            line["component"], news, line["seconds"],
        )  # fmt: skip

    def _dataflex_examples(self) -> Sized:
        """Returns what the loop counts as the examples that it trains on."""
        dataset: Sized = self.train_dataset  # type: ignore[assignment]  # the constructor refuses others
        return dataset

    def _dataflex_batches(
        self, dataset: Any, collate: Any, rows: NDArray[np.int64], weights: NDArray[np.float32] | None = None
    ) -> Iterator[Any]:
        """Yields this rank's batches of the rows that are left of a segment, on the device.

        Args:
            dataset: The train dataset, without unused columns.
            collate: Makes a batch of its rows.
            rows: (S,) the rows.
            weights: (S,) their weights in the loss, or None.
        """
        generator = torch.Generator()
        generator.manual_seed(seeded(self.seed, "loader", self.state.global_step))
        planned: Any = PlannedRows(dataset, rows)
        if self.training_objective is not None:
            planned, collate = NumberedRows(planned, rows, weights), NumberingCollator(collate)
        loader = DataLoader(
            planned,
            batch_size=self._train_batch_size,
            sampler=SequentialSampler(planned),
            collate_fn=collate,
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self._dataflex_worker_start(),
            pin_memory=self.args.dataloader_pin_memory,
            generator=generator,
        )
        prepared = outliving_sigterm(self.accelerator.prepare_data_loader(loader))
        try:
            yield from prepared
        finally:
            self.accelerator._dataloaders.remove(prepared)  # it keeps every loader it prepared; ours come by the dozen

    def _dataflex_worker_start(self) -> str | None:
        """Returns how workers are started; an argument that transformers 5.24 has and 5.6 has not."""
        how: str | None = vars(self.args).get("dataloader_multiprocessing_context")
        return how if self.args.dataloader_num_workers else None

    def _dataflex_component_name(self) -> str:
        return "static" if self.spec.component is None else self.spec.component.name

    def _dataflex_what(self, segment: Segment) -> str:
        """Returns what a segment takes its time for, as signs of life say it."""
        when = "the warm-up" if segment.update is None else f"update {segment.update}"
        return f"{self._dataflex_component_name()}: {when} at step {segment.start}"

    def _dataflex_who(self, segment: Segment) -> str:
        when = "warm-up" if segment.update is None else f"update {segment.update}"
        kind = "mixture" if self.spec.component is None else self.spec.component.kind.name
        return f"{kind} '{self._dataflex_component_name()}' at {when} (step {segment.start})"
