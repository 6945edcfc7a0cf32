"""The loss of the present micro-batch, as its part of the step's loss: which of the run's factors apply to it now.

Letters: B rows of the micro-batch, T tokens, V vocabulary, S samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dataflex.core.errors import ComponentError
from dataflex.model.output_losses import OutputLosses
from dataflex.objective.formula import (
    Note,
    StepPart,
    Total,
    Watch,
    losses_of_tokens,
    scaled_loss,
    weighted_loss,
    weighted_loss_of_tokens,
)
from dataflex.objective.label_counts import predicted
from dataflex.objective.loop_scale import counts_first, loop_of, undone
from dataflex.objective.measured import require_rows
from dataflex.objective.present_step import PresentStep
from dataflex.objective.source_weights import SourceWeights
from dataflex.objective.step_context import TrainerStep
from dataflex.objective.token_losses import CROSS_ENTROPY, CrossEntropy, DynamicFineTuning, TokenLoss
from dataflex.objective.weighing import Weighing
from dataflex.rows.batch_rows import BatchRows

if TYPE_CHECKING:
    from transformers import Trainer


class MicroBatchLoss:
    """What is asked wherever the loss of a model is computed.

    Args:
        trainer: The trainer.
        step: The present step.
        rows: The rows of its micro-batches.
        context: What the samples of the present one are; kept.
        watch: Told of weights.

    Attributes:
        weighing: The weighter of the run, if any.
        sources: The weights of sources, if a mixer gives any.
        outputs: The output layer that gives losses in the place of logits, if it does.
        by_tokens: Whether a weighted step is a mean over tokens.
        takes_count: Whether the plain loss is divided by the labels of the step where the loop counts them.
        notes: Whether the cross entropies of the tokens are wanted.
        training: Whether a micro-batch is being trained on; a loss of anything else is left as it is.
        asked: Whether it was asked for the micro-batch.
        losses: (B, T) cross entropies of the micro-batch without gradient, where they came by.
        graph: Told the (B, T) token losses that a loss of our own is made of, with their graph; None for nobody.
        counted: The labels of the step, where the loop counts them.
        without_logits: Whether losses are given in the place of logits at this moment.
    """

    def __init__(
        self, trainer: Trainer, step: PresentStep, rows: BatchRows, context: TrainerStep, watch: Watch
    ) -> None:
        self._trainer, self._step, self._rows, self.context, self._watch = trainer, step, rows, context, watch
        self.weighing: Weighing | None = None
        self.sources: SourceWeights | None = None
        self.outputs: OutputLosses | None = None
        self.by_tokens = False
        self.takes_count: Callable[[], bool] = lambda: True
        self.notes = False
        self.training = self.asked = self.without_logits = False
        self.losses: torch.Tensor | None = None
        self.graph: Note | None = None
        self.counted: torch.Tensor | int | None = None

    def begin(self, counted: torch.Tensor | int | None) -> None:
        """A forward of the micro-batch begins.

        Args:
            counted: The labels of the step, where the loop counts them.
        """
        self.counted, self.losses = counted, None

    @property
    def weighs(self) -> bool:
        """Whether a weighter weighs the micro-batch."""
        return self.weighing is not None and self.weighing.active is not None

    def of_logits(self, logits: Any, labels: torch.Tensor, token_loss: TokenLoss) -> torch.Tensor | None:
        """Returns the loss of the micro-batch; None where it is the plain one of the logits.

        Args:
            logits: (B, T, V) logits, or (B, T, 1) losses where the output layer gives them.
            labels: (B, T) labels before the shift.
            token_loss: What a token costs.
        """
        self.asked = True
        if not self.training:
            return None
        if isinstance(token_loss, DynamicFineTuning) and self._step.label_counts:
            token_loss = DynamicFineTuning(self._step.label_counts[self._rows.micro_batch])
        if self.outputs is not None and (self.without_logits or self.weighs):
            return self._of_outputs(logits, labels, token_loss)
        note = self.note if self.notes else None
        if self.weighs:
            weigh, part, samples = self._asking(), self._part(labels.device), self.context.samples
            return weighted_loss(logits, labels, part, weigh, token_loss, self._watch, samples, note, self.graph)
        found = self._factors(logits, labels, token_loss)
        if found is None:
            return None
        losses_BT, _ = losses_of_tokens(logits, labels.to(logits.device), token_loss, note, self.graph)
        return scaled_loss(losses_BT, *found)

    def of_tokens(self, losses_BT: torch.Tensor, labels_BT: torch.Tensor, plain_total: Total) -> torch.Tensor | None:
        """As :meth:`of_logits`, from cross entropies that need a gradient.

        Args:
            losses_BT: (B, T) cross entropies at the position before each label, 0 where there is none.
            labels_BT: Labels before the shift.
            plain_total: The sum of the losses as the plain loss adds them up.
        """
        self.asked = True
        return self._of_losses(losses_BT, labels_BT, CROSS_ENTROPY, plain_total)

    def _of_outputs(self, logits: Any, labels: torch.Tensor, token_loss: TokenLoss) -> torch.Tensor:
        if not self._untouched(logits):  # in the warm-up as well: not when it is over
            raise self._touched()
        assert isinstance(token_loss, CrossEntropy), "a smoothed loss needs the logits"
        losses_BT = logits.squeeze(-1)
        self.note(losses_BT)
        found = self._of_losses(losses_BT, labels, token_loss, None)
        if found is not None:
            return found
        by_step = self.counted is not None and self.takes_count()
        return torch.as_tensor(logits.sum() / (self.counted if by_step else predicted(labels).sum().clamp(min=1)))

    def _of_losses(
        self, losses_BT: torch.Tensor, labels_BT: torch.Tensor, token_loss: CrossEntropy, plain_total: Total | None
    ) -> torch.Tensor | None:
        if self.weighs:
            weigh, part, samples = self._asking(), self._part(labels_BT.device), self.context.samples
            return weighted_loss_of_tokens(
                losses_BT, labels_BT, part, weigh, token_loss, self._watch, samples, plain_total
            )
        found = self._factors(losses_BT[..., None], labels_BT, token_loss)
        return None if found is None else scaled_loss(token_loss.from_cross_entropy(losses_BT), *found)

    def _asking(self) -> Callable[[torch.Tensor], torch.Tensor]:
        assert self.weighing is not None
        self.weighing.weighed = True
        return self.weighing.weigh

    def _part(self, device: torch.device) -> StepPart:
        """Returns what the present micro-batch is part of, where a weighter weighs it."""
        counts, sources, samples = self._step.counts, None, self.context.samples
        if self.sources is not None and not self.sources.alike:
            counts, sources = self.sources.counts, samples.of_rows(self._of_sources().to(device))
        rows = None if self._rows.weights is None else samples.of_rows(self._rows.weights.to(device))
        by_step = self.counted is not None and self.takes_count()  # what the plain loss is divided by
        first = by_step and counts_first(self._trainer)
        plain = StepPart(counts, first, self.by_tokens, self._scale(), sources, rows)
        assert self.weighing is not None
        if self.weighing.of_tokens is None:
            return plain
        return replace(plain, by_tokens=True, tokens=self.weighing.weigh_tokens, mean_token=self.weighing.mean_token)

    def _factors(
        self, logits: torch.Tensor, labels: torch.Tensor, token_loss: TokenLoss
    ) -> tuple[torch.Tensor, torch.Tensor | float] | None:
        """Returns v u of each token, (B, T) or (B, 1), and what their sum is multiplied by, where no weighter weighs.

        None where the loss is the plain one.
        """
        sources, rows_B = self.sources, self._rows.weights
        if sources is None and rows_B is None:
            return None
        by_step = self.counted is not None and token_loss.counts_first and self.takes_count()
        scale = self._scale()
        if rows_B is None and sources is not None and sources.alike and by_step and scale == 1:
            return None  # the loss is divided by the labels of the step, as here
        factors_B = rows_B
        if sources is not None:
            v_B = self._of_sources()
            require_rows(logits, labels, len(v_B), "the mixer weighs the loss of each source")
            factors_B = v_B if rows_B is None else v_B * rows_B
        assert factors_B is not None
        counts = self._step.counts if sources is None else sources.counts
        total = counts.labels if by_step and counts_first(self._trainer) else counts.predicted
        return self._at_tokens(factors_B.to(logits.device), len(labels)), _quotient(scale, total)

    def _at_tokens(self, factors: torch.Tensor, rows: int) -> torch.Tensor:
        return factors[:, None] if len(factors) == rows else self.context.samples.at_losses(factors)

    def _of_sources(self) -> torch.Tensor:
        assert self.sources is not None
        return self.sources.of(self._rows.sources_of(self._rows.rows))

    def _scale(self) -> float:
        """Returns what undoes what the loop will do to the loss."""
        return undone(loop_of(self._trainer, self.counted is not None, len(self._step.batches)))

    def note(self, losses_BT: torch.Tensor) -> None:
        """Keeps the cross entropies of the micro-batch for who looks at them."""
        self.losses = losses_BT.detach()

    def _untouched(self, logits: torch.Tensor) -> bool:
        """Returns whether these are the losses that the output layer gave; of a copy, that is seen after the step."""
        assert self.outputs is not None
        assert self.weighing is not None, "only runs with a weighter leave the logits out"
        found = self.outputs.unchanged(logits)
        if isinstance(found, torch.Tensor):
            self.weighing.checks.expect(found, self._touched)
            return True
        return found

    def _touched(self) -> ComponentError:
        return ComponentError(
            f"{type(self._trainer.model).__name__} modifies logits after the output layer, so `chunked` is impossible "
            "-> set weight_logits: full"
        )


def _quotient(scale: float, total: torch.Tensor | float) -> torch.Tensor | float:
    """Returns ``scale / total``; 0 where nothing is counted."""
    if isinstance(total, torch.Tensor):
        return torch.where(total > 0, scale / total.clamp(min=1), 0.0)
    return scale / total if total > 0 else 0.0
