"""The interface of a weighter: how much does each sample's loss count?

    @register_weighter("ignore_hardest")
    class IgnoreHardest(Weighter):
        def get_weighted_loss(self, losses, *, ctx=None, model=None, inputs=None):
            return (losses * (losses < losses.max())).mean()

It runs with ``train_type: dynamic_weight``, ``component_name: ignore_hardest``. The weight of a sample is the
derivative of the returned scalar by its loss, relative to that of the plain mean; see docs/weighters.md for the
objective this gives under gradient accumulation and on several ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from dataflex.core.component import Component
from dataflex.core.errors import ConfigError
from dataflex.utils.logging import logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from dataflex.trainer.weight_trainer import WeightTrainer

__all__ = ["Weighter", "WeightsSamples", "logger"]


@runtime_checkable
class WeightsSamples(Protocol):
    """What the trainer calls. A class with these two methods is a weighter even if it inherits nothing."""

    def get_weighted_loss(self, losses: torch.Tensor, *, ctx: Any, model: Any, inputs: Any) -> torch.Tensor:
        """See :meth:`Weighter.get_weighted_loss`."""

    def training_step(
        self, ctx: Any, model: Any, inputs: Any, num_items_in_batch: Any = None, use_weighter: bool = False
    ) -> torch.Tensor:
        """See :meth:`Weighter.training_step`."""


class Weighter(Component, ABC):
    """Scales the loss of each sample of a micro-batch."""

    contract: ClassVar[str] = (
        "it needs get_weighted_loss(losses, *, ctx, model, inputs) -> scalar and "
        "training_step(ctx, model, inputs, num_items_in_batch=None, use_weighter=False)"
    )

    reads_hidden_states: ClassVar[bool] = False
    """Whether it uses :func:`~dataflex.objective.hidden.caught_hidden_states`; a model that shows none is then
    refused before training."""

    def __init__(self, **kwargs: Any) -> None:
        if kwargs:
            raise ConfigError(f"{type(self).__name__} has no parameter {', '.join(sorted(kwargs))}")

    @classmethod
    def accepts(cls, component: type) -> bool:
        """Returns whether ``component`` is a weighter."""
        return issubclass(component, WeightsSamples)

    @classmethod
    def needs_sources(cls, params: Mapping[str, Any]) -> bool:
        """Returns whether it must be told which source dataset each row comes from.

        Where it says so, the sources are tokenised one by one, as for a mixture, and ``dataset`` is a
        :class:`~dataflex.rows.views.MixedSources`.

        Args:
            params: The constructor parameters that the user gave.
        """
        return False

    @abstractmethod
    def get_weighted_loss(
        self,
        losses: torch.Tensor,
        *,
        ctx: WeightTrainer,
        model: torch.nn.Module,
        inputs: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Returns one number whose derivative by ``losses`` weighs the samples; ``losses.mean()`` changes nothing.

        Called on every rank for its own micro-batch.

        Args:
            losses: (S,) fp32, mean token loss of each sample; requires grad. A sample without labels has loss 0 and
                weight 0 whatever is returned.
            ctx: The trainer.
            model: The model being trained, in train mode.
            inputs: The micro-batch, a sample in each row. Where rows are packed, a sample is a document, and what has
                no value per token is left out.

        Returns:
            A scalar that depends on ``losses``.
        """

    def training_step(
        self,
        ctx: WeightTrainer,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | None = None,
        use_weighter: bool = False,
    ) -> torch.Tensor:
        """Runs forward and backward for one micro-batch and returns the detached loss.

        Args:
            ctx: The trainer.
            model: The model, wrapped as the engine wants it.
            inputs: The micro-batch.
            num_items_in_batch: Label tokens of the whole step, as ``transformers.Trainer`` counts them.
            use_weighter: False during warm-up.
        """
        if not use_weighter:
            return ctx.plain_training_step(model, inputs, num_items_in_batch)
        with ctx.weighted_by(self):
            return ctx.plain_training_step(model, inputs, num_items_in_batch)
