"""Handing the losses of a micro-batch on to who looks at them: the mixer, and who keeps the losses of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from dataflex.core.errors import ConfigError, blaming
from dataflex.objective.measured import SourceLosses, SourceTotals, losses_of_logits, require_rows, row_means
from dataflex.objective.parts import Parts
from dataflex.objective.source_sketches import SourceSketches
from dataflex.objective.step_context import TrainerStep
from dataflex.rows.batch_rows import BatchRows

if TYPE_CHECKING:
    from accelerate import Accelerator


class Measuring:
    """Looks at the losses of each micro-batch once it is trained on.

    Args:
        parts: Who looks.
        rows: The rows of the micro-batches.
        context: What their samples are, and the steps done.
        sketches: Is shown the losses, where gradients of the sources are measured; None where they are not.

    Attributes:
        totals: The losses of the sources since the last line of the record.
    """

    def __init__(
        self, parts: Parts, rows: BatchRows, context: TrainerStep, sketches: SourceSketches | None = None
    ) -> None:
        self._parts, self._rows, self._context, self._sketches = parts, rows, context, sketches
        mixer = parts.mixer
        self._by_source: SourceLosses | None = None
        if mixer is not None:
            values = mixer.mixer.logit_values if mixer.logits else mixer.mixer.token_values
            self._by_source = SourceLosses(mixer.sources, values)
        self.totals = SourceTotals(0 if mixer is None else mixer.sources)

    def add(self, losses_BT: torch.Tensor | None, logits_BTV: torch.Tensor | None, inputs: Mapping[str, Any]) -> None:
        """Adds the present micro-batch.

        Args:
            losses_BT: (B, T) cross entropies at the position before each label, where they were computed.
            logits_BTV: Else the logits that the step's loss came from.
            inputs: The batch as the model got it, with its labels.

        Raises:
            ConfigError: There are neither, no labels per token, or not one row for each that was planned.
            ComponentError: The mixer raised.
        """
        mixer, seen, rows = self._parts.mixer, self._parts.seen, self._rows.rows
        if mixer is not None and mixer.logits and logits_BTV is None:
            raise ConfigError(
                f"the mixer '{mixer.preset}' looks at the logits of training, and this run computes its loss without "
                "them -> switch off what does (a fused loss, weight_logits: chunked), or use another reward"
            )
        shaped = logits_BTV if losses_BT is None else losses_BT[..., None]
        expected = None if mixer is None else len(rows)
        targets_BT = require_rows(shaped, inputs.get("labels"), expected, self._parts.who_measures)
        if losses_BT is None:
            assert logits_BTV is not None
            losses_BT = losses_of_logits(logits_BTV, targets_BT)
        losses_BT = losses_BT.float()
        if self._sketches is not None:
            self._sketches.losses(losses_BT, targets_BT)
        if mixer is not None:
            assert self._by_source is not None
            with blaming(mixer.at(self._context.state.global_step)):
                logits = logits_BTV.detach() if mixer.logits and logits_BTV is not None else None
                self._by_source.add(losses_BT, targets_BT, self._rows.sources_of(rows), inputs, logits)
        if seen is not None:
            means = row_means(losses_BT, targets_BT, rows, self._context.samples)
            seen(rows, means, self._context.state.global_step)

    def step_done(self, step: int, accelerator: Accelerator) -> None:
        """Tells the mixer what a step cost. Collective.

        Args:
            step: Global optimizer steps done, this one included.
            accelerator: The run's accelerator.
        """
        mixer = self._parts.mixer
        if mixer is None:
            return
        assert self._by_source is not None
        losses_K, tokens_K = self._by_source.total(accelerator)
        self.totals.add(self._by_source.loss_sums, tokens_K, step - 1)
        with blaming(mixer.at(step)):
            mixer.mixer.observe(step, losses_K, tokens_K)
        if self._sketches is not None:
            self._sketches.step_done(step)
