"""The interface of a weighter: how much does each sample's loss count?

    @register_weighter("ignore_hardest")
    class IgnoreHardest(Weighter):
        def get_weighted_loss(self, losses, *, ctx=None, model=None, inputs=None):
            return (losses * (losses < losses.max())).mean()

It runs with ``train_type: dynamic_weight``, ``component_name: ignore_hardest``. The weight of a sample is the
derivative of the returned scalar by its loss, relative to that of the plain mean; see docs/weighters.md for the
objective this gives under gradient accumulation and on several ranks.

A weighter that says ``weighs_tokens = True`` gives each token of the micro-batch a weight, too:
:meth:`Weighter.token_weights`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from dataflex.core.component import Component
from dataflex.core.errors import ConfigError
from dataflex.utils.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    import numpy as np
    import torch
    from accelerate import Accelerator
    from transformers import TrainerState

__all__ = ["MicroBatch", "StepContext", "Weighter", "WeightsSamples", "logger"]


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of the step that begins, of this rank: for :meth:`Weighter.mean_token_weight`.

    Attributes:
        inputs: What the model will be given, with ``labels`` (B, T) before the shift.
        samples: What its samples are, see :mod:`dataflex.objective.samples`.
        rows: (B,) int64 the rows of the train dataset in it; (S,) one for each document, where the collator put them
            one after the other into one; None where the batch does not say.
    """

    inputs: Mapping[str, Any]
    samples: Any
    rows: torch.Tensor | None


class StepContext(Protocol):
    """What a weighter is given as ``ctx``: the step that is being made, and the micro-batch of it that is trained on.

    Any other name is looked up on the trainer. Letters: S samples of the micro-batch (rows, or documents of packed
    rows), L tokens of the longest, B rows, T tokens, N rows of the train dataset, K sources.

    Attributes:
        accelerator: The run's accelerator, for the rank and for reductions.
        state: The trainer's state: ``global_step`` steps done, ``max_steps`` to do.
        model: The model being trained, not wrapped by DDP.
        arguments: Dataflex's keys, such as ``warmup_step``.
        samples: What the samples are, see :mod:`dataflex.objective.samples`.
        batch_rows: (S,) int64 the row of each sample in the train dataset, on the device.
        source_names: (K) the sources; empty where the train dataset does not say where each begins.
        micro_batch: The present micro-batch of the step, from 0.
        micro_batches: Micro-batches of the step.
        is_last_micro_batch: Whether the optimizer step follows the present one.
        most_samples: The most samples of a micro-batch of the step, over its micro-batches and all ranks. On several
            ranks it is read from the device when it is first asked for in a step.
        sample_factors: (S,) factors of the losses of the samples in the loss of the step, once that is computed: for
            gradient hooks, which run later.
        loss_scale: What a gradient of the step's loss is multiplied by while it goes back through the model: the ranks,
            over which gradients are averaged afterwards, and the scale of fp16.
    """

    @property
    def accelerator(self) -> Accelerator:
        """See the attributes of the class."""

    @property
    def state(self) -> TrainerState:
        """See the attributes of the class."""

    @property
    def model(self) -> Any:
        """See the attributes of the class."""

    @property
    def arguments(self) -> Any:
        """See the attributes of the class."""

    @property
    def samples(self) -> Any:
        """See the attributes of the class."""

    @property
    def batch_rows(self) -> torch.Tensor:
        """See the attributes of the class.

        Raises:
            ComponentError: The batch holds no row numbers.
        """

    @property
    def source_names(self) -> tuple[str, ...]:
        """See the attributes of the class."""

    @property
    def micro_batch(self) -> int:
        """See the attributes of the class."""

    @property
    def micro_batches(self) -> int:
        """See the attributes of the class."""

    @property
    def is_last_micro_batch(self) -> bool:
        """See the attributes of the class."""

    @property
    def most_samples(self) -> int:
        """See the attributes of the class."""

    @property
    def sample_factors(self) -> torch.Tensor:
        """See the attributes of the class."""

    @property
    def loss_scale(self) -> float:
        """See the attributes of the class."""

    def of_batch(self, table_N: np.ndarray) -> torch.Tensor:
        """Returns the entries of a table for the rows of the samples: (S,), on the device.

        The table is sent to the device once and must not change.

        Args:
            table_N: (N,) numbers, one for each row of the train dataset.
        """

    def of_sources(self, table_K: np.ndarray) -> torch.Tensor:
        """Returns the entries of a table for the sources of the samples: (S,), on the device. As :meth:`of_batch`.

        Args:
            table_K: (K,) numbers, one for each source of :attr:`source_names`.
        """

    def sources_of(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the number of each row's source in :attr:`source_names`: same shape, int64.

        Args:
            rows: Row numbers.
        """

    def by_sample(self, values_BT: torch.Tensor) -> torch.Tensor:
        """Returns values of the micro-batch's tokens sample by sample, as the weighter's ``inputs`` are: (S, L, ...).

        Args:
            values_BT: (B, T, ...) such as hidden states or their gradients.
        """

    def step_losses(self) -> tuple[Any, slice]:
        """Returns the losses of this rank's samples of the whole step, and where the present micro-batch's stand.

        They are a :class:`~dataflex.objective.step_losses.StepLosses`, computed when the first micro-batch of a step
        asks, by a forward pass more over the step; every rank must ask then.
        """

    def step_embeddings(self, embed: Callable[[torch.Tensor, Mapping[str, Any]], torch.Tensor]) -> torch.Tensor:
        """Returns embeddings of this rank's samples of the whole step: (S, D), by a forward pass more over the step.

        Every rank must ask, at the same micro-batch. Where a step has one micro-batch, the training forward shows the
        same (:func:`~dataflex.objective.hidden.caught_hidden_states`), with dropout.

        Args:
            embed: ``embed(hidden_SLH, inputs) -> (S, D)``, of a micro-batch whose ``inputs`` have a sample in each row.
        """

    def plain_training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Runs forward and backward as the trainer underneath does; returns the detached loss, a scalar.

        Args:
            model: The model, wrapped as the engine wants it.
            inputs: The micro-batch.
            num_items_in_batch: Label tokens of the whole step, as :meth:`Weighter.training_step` got them.
        """

    def weighted_by(self, weighter: WeightsSamples) -> AbstractContextManager[None]:
        """Inside of it, :meth:`plain_training_step` weighs each sample's loss with ``weighter``.

        Args:
            weighter: The weighter, most often the one that asks.
        """


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

    weighs_tokens: ClassVar[bool] = False
    """Whether it has :meth:`token_weights`. The loss of a step is then a mean over tokens, whatever
    ``weight_objective`` says. Stages whose rows have no losses of tokens are refused."""

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
        ctx: StepContext,
        model: torch.nn.Module,
        inputs: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Returns one number whose derivative by ``losses`` weighs the samples; ``losses.mean()`` changes nothing.

        Called on every rank for its own micro-batch.

        Args:
            losses: (S,) fp32, mean token loss of each sample in nats; requires grad. A sample without labels has loss
                0 and weight 0 whatever is returned.
            ctx: The step, and what it holds.
            model: The model being trained, in train mode.
            inputs: The micro-batch, a sample in each row. Where rows are packed, a sample is a document, and what has
                no value per token is left out.

        Returns:
            A scalar that depends on ``losses``.
        """

    def mean_token_weight(self, batches: Sequence[MicroBatch], *, ctx: StepContext) -> torch.Tensor | float:
        """Returns the mean of the weights of all tokens of the step that are predicted: what the loss is divided by.

        Called with ``weighs_tokens`` before each step that it weighs, on every rank, and may be collective; every rank
        returns the same. The loss is a sum over the step, so its divisor must be known before the first micro-batch is
        trained on. Where it is the mean, the loss is sum z c / sum z; where it is 1, sum z c over the number of tokens.

        Args:
            batches: This rank's micro-batches of the step.
            ctx: The step, and what it holds; none of its micro-batches is the present one yet.

        Returns:
            A number, or a scalar on the device; 0 where every weight is 0.
        """
        return 1.0

    def token_weights(
        self,
        losses_BT: torch.Tensor,
        *,
        ctx: StepContext,
        model: torch.nn.Module,
        inputs: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Returns z, the weight of each token of the micro-batch: (B, T), at the position before it; without gradient.

        Called with ``weighs_tokens`` on every rank for its own micro-batch. It multiplies what
        :meth:`get_weighted_loss` makes of the samples. Weights of tokens that are not predicted do not matter.

        Args:
            losses_BT: (B, T) fp32 cross entropies at the position before each label, 0 where there is none; without
                gradient.
            ctx: The step, and what it holds.
            model: The model being trained, in train mode.
            inputs: The micro-batch as the model gets it, with its labels.
        """
        raise NotImplementedError(f"{type(self).__name__} says weighs_tokens, and has no token_weights")

    def training_step(
        self,
        ctx: StepContext,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | None = None,
        use_weighter: bool = False,
    ) -> torch.Tensor:
        """Runs forward and backward for one micro-batch and returns the detached loss.

        Args:
            ctx: The step, and what it holds.
            model: The model, wrapped as the engine wants it.
            inputs: The micro-batch.
            num_items_in_batch: Label tokens of the whole step, as ``transformers.Trainer`` counts them.
            use_weighter: False during warm-up.
        """
        if not use_weighter:
            return ctx.plain_training_step(model, inputs, num_items_in_batch)
        with ctx.weighted_by(self):
            return ctx.plain_training_step(model, inputs, num_items_in_batch)
