"""The base class of weighters that need the last hidden states of the training forward."""

from __future__ import annotations

import torch
from dataflex.objective.hidden import Caught, caught_hidden_states
from dataflex.train.weighter.base_weighter import StepContext, Weighter


class CatchesHiddenStates(Weighter):
    """Base of weighters that need the hidden states of each micro-batch that they weigh."""

    reads_hidden_states = True
    _caught: Caught | None = None

    def before_forward(self, ctx: StepContext) -> None:
        """Called on every rank before the forward of each micro-batch that is weighed. Does nothing by default."""

    def after_backward(self, ctx: StepContext) -> None:
        """Called on every rank after the backward of each micro-batch that is weighed. Does nothing by default."""

    def hidden_states(self) -> torch.Tensor:
        """Returns the last hidden states of the micro-batch, with their graph; for ``get_weighted_loss``."""
        assert self._caught is not None, "the hidden states come with training_step"
        return self._caught()

    def training_step(
        self,
        ctx: StepContext,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | None = None,
        use_weighter: bool = False,
    ) -> torch.Tensor:
        """Catches the hidden states of the forward, unless the step is one of the warm-up. See the base class."""
        if not use_weighter:
            return super().training_step(ctx, model, inputs, num_items_in_batch, use_weighter)
        self.before_forward(ctx)
        assert isinstance(ctx.model, torch.nn.Module)
        with caught_hidden_states(ctx.model) as self._caught:
            loss = super().training_step(ctx, model, inputs, num_items_in_batch, use_weighter)
        self.after_backward(ctx)
        return loss
