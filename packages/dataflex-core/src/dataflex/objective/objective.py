"""The objective of a run: everything that says how much a token counts, and what is measured while that is computed.

A trainer holds one, or none where nothing weighs and nobody looks at losses, and forwards to it: a step's batches
(:meth:`Objective.begin_step`), each micro-batch (:meth:`Objective.training_step`), its loss
(:meth:`Objective.compute_loss`), and the end of the step. The formula stands in :mod:`dataflex.objective.formula`; here
is which parts take part in it at the moment. A part that is absent costs nothing and changes nothing, bit for bit.

Letters: B rows of a micro-batch, S samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from dataflex.core.errors import ComponentError, ConfigError, blaming, not_exiting
from dataflex.interfaces.weighter import MicroBatch, Weighter, WeightsSamples
from dataflex.model.unwrapped import is_sharded, pretrained_models, require_causal
from dataflex.objective.loss_function import ReplacedLoss
from dataflex.objective.loss_routes import LossRoutes
from dataflex.objective.measuring import Measuring
from dataflex.objective.micro_batch_loss import MicroBatchLoss
from dataflex.objective.parts import Keys, Parts
from dataflex.objective.present_step import PresentStep
from dataflex.objective.samples import ROWS
from dataflex.objective.source_sketches import SourceSketches
from dataflex.objective.source_weights import SourceWeights
from dataflex.objective.stage_route import StageRoute, as_samples
from dataflex.objective.step_context import TrainerStep
from dataflex.objective.weighing import Weighing
from dataflex.objective.weight_log import WeightLog
from dataflex.rows.batch_rows import BatchRows
from dataflex.run.tracked_numbers import loss_metrics, weight_metrics
from dataflex.scoring.passes.row_pass import Collator

if TYPE_CHECKING:
    from transformers import Trainer

Train = Callable[..., torch.Tensor]
"""The training step of the trainer underneath."""


class Objective:
    """The parts of a run that weigh its loss or look at losses, in its training loop.

    Args:
        trainer: The trainer, with its model not yet wrapped; its loss is replaced where a part weighs.
        parts: The parts.
        keys: What the run's keys say of the loss.
        rows: The rows of the micro-batches.

    Attributes:
        parts: The parts.
        context: What a weighter is given as ``ctx``.
        log: What the weights of a weighter were.

    Raises:
        ConfigError: The loss of the run cannot be weighed, or nobody could look at it.
    """

    WEIGHT = "weight"
    """The kind of its lines about weights in the trace."""
    LOSS = "loss"
    """That of its lines about the losses of the sources."""

    def __init__(self, trainer: Trainer, parts: Parts, keys: Keys, rows: BatchRows) -> None:
        self.parts, self._trainer, self._rows = parts, trainer, rows
        self._step = PresentStep()
        self.context = TrainerStep(trainer, self._step, rows, self._plain_training_step, self._weighted_by)
        self.log = WeightLog(rows.source_names, rows.sources_on_host)
        self._metrics: dict[str, float] = {}
        self._train: Train | None = None
        self._loss = MicroBatchLoss(trainer, self._step, rows, self.context, self._watch)
        self._loss.notes, self._loss.by_tokens = parts.measures, keys.by_tokens
        if parts.weighter is not None:
            self._loss.weighing = self.context.weighing = Weighing(parts.weighter, self.context)
        mixer = parts.mixer
        if mixer is not None and mixer.weighs:
            self._loss.sources = SourceWeights(mixer.mixer.loss_weights)
        self._sketches: SourceSketches | None = None
        if mixer is not None and mixer.gradients:
            self._sketches = SourceSketches(trainer, mixer, rows)
            self._loss.graph = self._sketches.of_tokens
        self._measuring = Measuring(parts, rows, self.context, self._sketches) if parts.measures else None
        self._stage, self._routes = keys.stage, self._route(keys)
        self.context.outputs = self._loss.outputs
        self._replaced: ReplacedLoss | None = None
        if parts.weighs and keys.stage is None:
            replaced = ReplacedLoss(trainer, self._loss.of_logits, keys.dft, lambda: self._loss.without_logits)
            self._replaced, self._loss.takes_count = replaced, lambda: replaced.takes_count

    def _route(self, keys: Keys) -> LossRoutes | StageRoute:
        if keys.stage is None:
            return LossRoutes(self._trainer, self.parts, keys, self._loss, self._step, self._measuring, self._sketches)
        self.context.refuses_step_losses = keys.stage.name
        weighter = self.parts.weighter
        if weighter is not None and isinstance(weighter.weighter, Weighter) and weighter.weighter.weighs_tokens:
            raise ConfigError(
                f"{self.parts.who_weighs} gives tokens weights, and a row of stage {keys.stage.name} has one loss as a "
                "whole -> use a weighter of samples, or stage: sft or pt"
            )
        return StageRoute(self._trainer, keys.stage, self._loss, self._measuring)

    def require(self, collator: Collator, rows: Sequence[Mapping[str, Any]]) -> None:
        """Has the model compute the loss of some rows, where a part weighs it: one that cannot be replaced is refused.

        Args:
            collator: Makes a batch of tensors from a list of rows.
            rows: Rows with labels.

        Raises:
            ConfigError: The model's loss cannot be weighed.
        """
        if self._sketches is not None and not is_sharded(self._trainer.accelerator):
            self._sketches.require(collator, rows)
        if self._replaced is None:
            return
        assert isinstance(self._trainer.model, torch.nn.Module)
        require_causal(pretrained_models(self._trainer.model))
        self._replaced.require(collator, rows, f"the {self.parts.who_weighs}", chunked=self._loss.outputs is not None)
        self._loss.asked = False  # by training, that is

    def begin_step(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Counts the samples and labels of the step that begins, and takes the weights of the sources. Collective.

        Args:
            batches: This rank's micro-batches of the step; their rows have been taken out.

        Raises:
            ComponentError: The weights of sources are no weights, or rows have weights that were not declared.
        """
        weighing, sources, rows = self._loss.weighing, self._loss.sources, self._rows
        weighs_rows = self.parts.rows is not None or self.parts.objective is not None
        if self.parts.objective is not None:
            rows.weigh_sources(self.parts.objective())
        if rows.weighed and self.parts.rows is None:
            raise ComponentError(
                "rows came with weights, but nobody was to give any -> set weighs = True in the class of the selector"
            )
        if self._stage is not None:
            batches = as_samples(self._stage, batches, self._trainer.args.device)
        self._step.begin(batches, documents=weighing is not None or any(rows.flattened))
        accelerator = self._trainer.accelerator
        if weighing is not None or (weighs_rows and sources is None):
            needed = self._loss.outputs is not None or self._trainer.compute_loss_func is not None
            self._step.count(accelerator, self._trainer.args.device, on_host=needed and weighing is not None)
        if self._sketches is not None:
            self._sketches.begin_step(self._trainer.state.global_step)
            if weighing is not None and any(samples is not ROWS for samples in self._step.samples):
                raise ComponentError(
                    "documents of packed rows are weighed each for itself, and the mixer takes gradients of whole rows "
                    "-> leave packing out, or use a mixer that does not look at gradients"
                )
        if sources is not None and batches:
            assert self.parts.mixer is not None
            with blaming(self.parts.mixer.at(self._trainer.state.global_step)):
                sources.begin_step(batches, self._step.samples, rows.sources_of_step(), accelerator)
        if weighing is not None and batches and self._trainer.state.global_step >= weighing.part.start:
            weighing.begin_step(list(map(MicroBatch, batches, self._step.samples, rows.of_step)))

    def training_step(self, train: Train, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Trains on the next micro-batch of the step, by the ``training_step`` of the weighter where there is one.

        Args:
            train: The training step of the trainer underneath.
            model: The model, wrapped as the engine wants it.
            inputs: The micro-batch.
            *args: More of what the loop gives: the labels of the step.
            **kwargs: The same by name.
        """
        self._rows.next()
        self._train, self._loss.training, self._loss.asked = train, True, False
        try:
            if self._loss.weighing is None:
                found = train(model, inputs, *args, **kwargs)
            else:
                found = self._weighted_training_step(self._loss.weighing, model, inputs, *args, **kwargs)
            if self._sketches is not None:
                self._sketches.end_micro_batch()
            return found
        finally:
            self._train, self._loss.training = None, False

    def compute_loss(self, compute: Callable[..., Any], model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Computes the loss as the trainer underneath does, by the weights of the run, and looks at what it came from.

        Args:
            compute: ``compute_loss`` of the trainer underneath.
            model: The model, wrapped.
            inputs: The batch.
            *args: More of what the loop gives.
            **kwargs: The same by name.
        """
        if not self._loss.training:  # an evaluation
            return compute(model, inputs, *args, **kwargs)
        return self._routes.compute(compute, model, inputs, *args, **kwargs)

    def step_done(self) -> None:
        """Tells the mixer what the optimizer step cost. On every rank."""
        if self._measuring is not None:
            self._measuring.step_done(self._trainer.state.global_step, self._trainer.accelerator)

    def training_done(self) -> None:
        """Tells the mixer that the run is over. On every rank."""
        mixer, step = self.parts.mixer, self._trainer.state.global_step
        if mixer is not None:
            with blaming(mixer.at(step)):
                mixer.mixer.finish(step)

    def weights_line(self) -> dict[str, Any]:
        """Returns what the weights were since the last line, for the trace; empty if nothing was weighed. Collective.

        Their mean and extremes are part of the next line of the training loss.
        """
        first, done = self.log.first, self._trainer.state.global_step
        self._metrics = {}
        if self.parts.weighter is None:
            return {}
        found = self.log.line(self._trainer.accelerator)
        self._metrics = weight_metrics(found)
        if not found:
            return {}
        named = {"step": done - 1, "kind": self.WEIGHT, "component": self.parts.weighter.name}
        return named | {"steps": done - (first or 0)} | _rounded(found)

    def losses_line(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the losses of the sources since the last line, for the trace; empty where they are not measured.

        A mixer that observes them has them measured, and so has a weighter where the sources are known.

        Args:
            weights: What :meth:`weights_line` returned just before.
        """
        done, names = self._trainer.state.global_step, self._rows.source_names
        if self._measuring is not None and self.parts.mixer is not None:
            steps, sources = self._measuring.totals.taken(names, done)
        else:
            steps, sources = weights.get("steps", 0), self.log.losses if weights else {}
        if not sources:
            return {}
        line = {"step": done - 1, "kind": self.LOSS, "steps": steps, "sources": _rounded(sources)}
        self._metrics |= loss_metrics(line)
        return line

    @property
    def open_lines(self) -> dict[str, int | None]:
        """Kind of its lines -> the step at which the one that is collected for begins; None where none is."""
        first = by_source = self.log.first
        if self._measuring is not None and self.parts.mixer is not None:
            by_source = self._measuring.totals.first
        return {self.WEIGHT: first, self.LOSS: by_source}

    def logged(self, logs: dict[str, float]) -> dict[str, float]:
        """Returns a line of the log, with what was measured where it is one of the training loss."""
        if "loss" not in logs:
            return logs
        left_out = 0 if self._loss.weighing is None else self._loss.weighing.left_out
        metrics, self._metrics = self._metrics, {}
        return logs | metrics | ({"dataflex/left_out": left_out} if left_out else {})

    def settle(self) -> None:
        """Makes :meth:`state_dict` hold what all ranks collected. Collective; before a checkpoint is written."""
        if self.parts.weighter is not None:
            self.log.settle(self._trainer.accelerator)

    def forget(self) -> None:
        """Forgets what an earlier training by the same trainer left."""
        self.log.forget()
        if self._measuring is not None:
            self._measuring.totals.forget()
        self._metrics = {}

    def state_dict(self) -> dict[str, Any]:
        """Returns what goes into a checkpoint."""
        losses = None if self._measuring is None else self._measuring.totals.state_dict()
        return {"weights": self.log.state_dict(), "losses": losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.log.load_state_dict(state["weights"])
        losses = state.get("losses")  # a checkpoint of an earlier version has none
        if self._measuring is not None and losses is not None:
            self._measuring.totals.load_state_dict(losses)

    def _weighted_training_step(
        self, weighing: Weighing, model: Any, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        part = weighing.part
        use = self._trainer.state.global_step >= part.start
        with not_exiting(weighing.who):  # not blaming: what the model raises in there is not the weighter's fault
            loss = part.weighter.training_step(
                self.context, model, inputs, num_items_in_batch=num_items_in_batch, use_weighter=use
            )
        if self.context.is_last_micro_batch:
            weighing.checks.examine()  # the one read from the device, before the optimizer steps
        return loss

    def _plain_training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        assert self._train is not None, "a weighter trains inside of its training_step"
        self._loss.asked = False
        loss = self._train(model, inputs, num_items_in_batch)
        self._require_seen(self._loss.asked)  # also where nothing is weighed yet: not when the warm-up is over
        return loss

    @contextmanager
    def _weighted_by(self, weighter: WeightsSamples) -> Iterator[None]:
        assert self._loss.weighing is not None
        with self._loss.weighing.by(weighter):
            yield
        self._require_seen(self._loss.weighing.weighed)

    def _require_seen(self, seen: bool) -> None:
        if not seen:
            raise ConfigError(
                f"{type(self._trainer.model).__name__} computes its loss without model.loss_function, or the trainer "
                "has a compute_loss_func of its own, so samples cannot be weighed -> use a model class of "
                "transformers, without a fused loss, and no compute_loss_func"
            )

    def _watch(
        self, weights_S: torch.Tensor, factors_S: torch.Tensor, labels_S: torch.Tensor, sums_S: torch.Tensor
    ) -> None:
        assert self._loss.weighing is not None
        self.log.add(weights_S, labels_S, sums_S, self._rows_of_samples(), self._trainer.state.global_step)
        self._loss.weighing.factors = factors_S

    def _rows_of_samples(self) -> torch.Tensor | None:
        """Returns (S,) the row of each sample; None where a collator leaves that open and nobody needs it."""
        try:
            return self.context.batch_rows
        except ComponentError:
            if self._rows.source_names:
                raise
            return None


def _rounded(line: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the numbers with 9 digits: the order in which they were added up does not show."""
    return {
        key: _rounded(value)
        if isinstance(value, Mapping)
        else float(f"{value:.9g}")
        if isinstance(value, float)
        else value
        for key, value in line.items()
    }
