"""What a weighter is given as ``ctx``, of a trainer that holds an objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from dataflex.core.errors import ComponentError
from dataflex.interfaces.weighter import WeightsSamples
from dataflex.model.output_losses import OutputLosses
from dataflex.objective.present_step import PresentStep
from dataflex.objective.samples import ROWS, Samples
from dataflex.objective.step_hidden import Embed, step_embeddings
from dataflex.objective.step_losses import StepLosses, step_losses
from dataflex.objective.weighing import Weighing
from dataflex.rows.batch_rows import BatchRows

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import Trainer, TrainerState

PlainStep = Callable[[Any, Any, Any], torch.Tensor]
"""``plain(model, inputs, num_items_in_batch)``: forward and backward, and the detached loss."""


class TrainerStep:
    """The step that a trainer makes: a :class:`~dataflex.interfaces.weighter.StepContext`.

    Names that it does not have reach the trainer, whose methods weighters of before could call.

    Args:
        trainer: The trainer.
        step: The present step.
        rows: The rows of its micro-batches.
        plain: What :meth:`plain_training_step` calls.
        weighed_by: What :meth:`weighted_by` enters.
    """

    def __init__(
        self,
        trainer: Trainer,
        step: PresentStep,
        rows: BatchRows,
        plain: PlainStep,
        weighed_by: Callable[[WeightsSamples], Any],
    ) -> None:
        self._trainer, self._step, self._rows = trainer, step, rows
        self._plain, self._weighed_by = plain, weighed_by
        self.weighing: Weighing | None = None
        self.outputs: OutputLosses | None = None
        self.refuses_step_losses: str | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_trainer":
            raise AttributeError(name)
        return getattr(self._trainer, name)

    @property
    def accelerator(self) -> Accelerator:
        """See :class:`~dataflex.interfaces.weighter.StepContext`, here and below."""
        return self._trainer.accelerator

    @property
    def state(self) -> TrainerState:
        """Steps done and to do."""
        return self._trainer.state

    @property
    def model(self) -> Any:
        """The model."""
        return self._trainer.model

    @property
    def arguments(self) -> Any:
        """Dataflex's keys."""
        return self._trainer.arguments  # type: ignore[attr-defined]  # a trainer of ours

    @property
    def samples(self) -> Samples:
        """What the samples of the present micro-batch are."""
        number = self._rows.micro_batch
        return self._step.samples[number] if 0 <= number < len(self._step.samples) else ROWS

    @property
    def batch_rows(self) -> torch.Tensor:
        """(S,) the row of each sample."""
        return self.samples.of_rows(self._rows.rows)

    def of_batch(self, table_N: NDArray[Any]) -> torch.Tensor:
        """(S,) entries of a table of rows."""
        return self._rows.entries(table_N, self.batch_rows)

    def of_sources(self, table_K: NDArray[Any]) -> torch.Tensor:
        """(S,) entries of a table of sources."""
        return self._rows.source_entries(table_K, self.batch_rows)

    @property
    def source_names(self) -> tuple[str, ...]:
        """(K) sources."""
        return self._rows.source_names

    def sources_of(self, rows: torch.Tensor) -> torch.Tensor:
        """The source of each row."""
        return self._rows.sources_of(rows)

    def by_sample(self, values_BT: torch.Tensor) -> torch.Tensor:
        """(S, L, ...) values sample by sample."""
        return self.samples.apart(values_BT)

    @property
    def micro_batch(self) -> int:
        """The present micro-batch of the step, from 0."""
        return self._rows.micro_batch

    @property
    def micro_batches(self) -> int:
        """Micro-batches of the step."""
        return len(self._step.batches)

    @property
    def is_last_micro_batch(self) -> bool:
        """Whether the optimizer steps next."""
        return self._rows.micro_batch == len(self._step.batches) - 1

    @property
    def most_samples(self) -> int:
        """Most samples of a micro-batch of any rank."""
        return self._step.most_samples

    @property
    def sample_factors(self) -> torch.Tensor:
        """(S,) derivatives of the step's loss."""
        assert self.weighing is not None
        return self.weighing.factors

    @property
    def loss_scale(self) -> float:
        """What gradients are multiplied by."""
        if self._step.loss_scale is None:  # it changes when the optimizer steps; to read it is to wait for the device
            scaler = self.accelerator.scaler
            self._step.loss_scale = float(scaler.get_scale()) if scaler is not None else 1.0
        return self._step.loss_scale * int(self.accelerator.num_processes)

    def step_losses(self) -> tuple[StepLosses, slice]:
        """Losses of the whole step."""
        if self.refuses_step_losses is not None:
            raise ComponentError(
                f"the losses of a whole step are computed of texts, and this is stage {self.refuses_step_losses} -> "
                "compare the rows of a micro-batch (scope: batch)"
            )
        if self._step.losses is None:
            assert isinstance(self.model, torch.nn.Module)
            with nullcontext() if self.outputs is None else self.outputs.suspended():
                parts = list(zip(self._step.batches, self._step.samples, self._rows.of_step, strict=True))
                self._step.losses = step_losses(self.model, parts, self.accelerator)
        return self._step.losses, self._step.losses.part(self._rows.micro_batch)

    def step_embeddings(self, embed: Embed) -> torch.Tensor:
        """Embeddings of the whole step."""
        if self.refuses_step_losses is not None:
            raise ComponentError(
                f"hidden states of a whole step are those of texts, and this is stage {self.refuses_step_losses} -> "
                "use a weighter that looks at losses"
            )
        assert isinstance(self.model, torch.nn.Module)
        with nullcontext() if self.outputs is None else self.outputs.suspended():
            parts = list(zip(self._step.batches, self._step.samples, strict=True))
            return step_embeddings(self.model, parts, self.accelerator, embed)

    def plain_training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward as the trainer underneath does them."""
        return self._plain(model, inputs, num_items_in_batch)

    @contextmanager
    def weighted_by(self, weighter: WeightsSamples) -> Iterator[None]:
        """Inside of it, a training step is weighed."""
        with self._weighed_by(weighter):
            yield
