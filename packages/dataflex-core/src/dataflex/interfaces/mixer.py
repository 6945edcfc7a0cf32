"""The interface of a mixer: in which proportions does the next stretch of training draw from the source datasets?

    @register_mixer("mostly_first")
    class MostlyFirst(Mixer):
        def mix(self, model, step_id, **kwargs):
            shares = np.full(len(self.mixture_manager.names), 0.1)
            shares[0] = 1.0
            return shares / shares.sum()

It runs with ``train_type: dynamic_mix``, ``component_name: mostly_first``. Every rank calls ``mix`` with the same
arguments and must return the same numbers. A mixer that learns from how training goes overrides ``observe`` as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from dataflex.core.component import Component
from dataflex.interfaces.source_gradients import GradientSketch, SketchesRows, SourceGradients
from dataflex.utils.logging import logger

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = ["Mixer", "logger"]


class SourceMixture(Protocol):
    """What a mixer sees of the sources of its run: :class:`~dataflex.planning.mixture.MixtureManager` has more."""

    @property
    def names(self) -> tuple[str, ...]:
        """(K) names, in the order of the user's ``dataset`` key."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(K,) rows of each source. Streams do not have them."""

    @property
    def unit(self) -> str:
        """What proportions are shares of: ``rows`` or ``tokens``."""

    @property
    def amounts(self) -> NDArray[np.float64]:
        """(K,) rows of each source, or its tokens where shares are shares of tokens."""

    @property
    def proportions(self) -> NDArray[np.float64]:
        """(K,) current shares, sum 1."""


class Mixer(Component, ABC):
    """Sets the proportions of the source datasets.

    Args:
        mixture_manager: The sources: their ``names``, ``sizes`` (rows) and current ``proportions``.

    Attributes:
        needs_sizes: Whether it looks at the sizes of the sources, which streams do not have.
        weighs_sources: ``losses`` where it overrides :meth:`loss_weights`, or ``losses if PARAMETER=VALUE`` where only
            these parameters make it weigh. ``validate``, which imports no component, then refuses
            ``objective_proportions``; a trainer does so in any case.
        sketcher: Sketches gradients of rows that are not trained on; set before training where the mixer looks at
            gradients, else None.
    """

    needs_sizes: ClassVar[bool] = False
    weighs_sources: ClassVar[str] = ""
    sketcher: SketchesRows | None = None

    contract: ClassVar[str] = "it needs mix(model, step_id, **kwargs) -> one share per source"

    def __init__(self, mixture_manager: SourceMixture) -> None:
        self.mixture_manager = mixture_manager

    @classmethod
    def accepts(cls, component: type) -> bool:
        """Returns whether ``component`` is a mixer."""
        return issubclass(component, Mixer)

    @classmethod
    def may_observe(cls, params: Mapping[str, Any]) -> bool:
        """Returns whether :meth:`observe` would be called: where it, or one that is called with it, is overridden.

        Asked before the model is loaded, to refuse what could not be observed. One that weighs the loss of each source
        needs a loss that tells them apart as much as one that observes it.
        """
        overridden = cls.observe is not Mixer.observe or cls.loss_weights is not Mixer.loss_weights
        return overridden or cls.may_observe_gradients(params) or cls.may_observe_logits(params)

    @property
    def observes(self) -> bool:
        """Whether :meth:`observe` is to be called: where it is overridden. Asked once, before training."""
        return self.may_observe({})

    @classmethod
    def needs_held_out(cls, params: Mapping[str, Any]) -> bool:
        """Returns whether it looks at held-out rows of each source with these parameters.

        Optional, for a constructor that does without ``mixer_eval_dataset`` with other ones. Asked before the model is
        loaded, to refuse a run that has none.
        """
        return False

    def prepare(self, model: torch.nn.Module) -> None:
        """Looks at the model once, on every rank, before there is an optimizer.

        Optional: the place to refuse a model that the mixer cannot work with, or to keep weights from being trained.

        Args:
            model: The model to be trained, with its adapters, not yet wrapped by an engine.
        """

    @abstractmethod
    def mix(self, model: torch.nn.Module, step_id: int, **kwargs: Any) -> np.ndarray:
        """Returns the proportions of the next stretch.

        Called on every rank with the model in eval mode, between two optimizer steps.

        Args:
            model: The model being trained.
            step_id: Global optimizer steps done.
            **kwargs: ``context``, an :class:`~dataflex.core.context.UpdateContext`; more may come in later versions.

        Returns:
            (K,) non-negative shares that sum to 1, in the order of ``mixture_manager.names`` and in the unit that
            ``mixture_unit`` gives: rows or tokens.
        """

    def observe(self, step: int, losses_K: np.ndarray, tokens_K: np.ndarray) -> None:
        """Receives each source's mean loss and tokens of the last optimizer step.

        Optional. Called after each optimizer step, warm-up included, on every rank with the same numbers: sums over
        the step's micro-batches and over all ranks. They come from the forward of training itself. It must not draw
        from global random generators; what it keeps belongs into :meth:`state_dict`.

        Args:
            step: Global optimizer steps done, this one included.
            losses_K: (K,) float64, mean token loss of each source under the weights before the step; NaN for a source
                that had no token in it.
            tokens_K: (K,) int64, how many tokens with a label that is predicted each source had.

        Where rows are prompts, whose answers training samples (TRL's GRPO and RLOO), it receives in their place the
        mean over the source's prompts of the standard deviation of their answers' rewards, and the number of its
        answers; NaN and 0 for a source that had none in the step. A mixer for which that would not do says so in
        ``asks``.
        """

    def token_values(self, inputs: Mapping[str, Any], losses_BT: torch.Tensor) -> torch.Tensor:
        """Returns what :meth:`observe` gets the means of: (B, T), the token losses themselves unless overridden.

        Called on each rank for its own micro-batches, without gradients.

        Args:
            inputs: The micro-batch: ``input_ids`` (B, T), ``labels`` (B, T), ...
            losses_BT: (B, T) float32; the loss at t is that of predicting token t + 1, and 0 where that has no label.
        """
        return losses_BT

    @classmethod
    def may_observe_logits(cls, params: Mapping[str, Any]) -> bool:
        """Returns whether :meth:`logit_values` takes the place of :meth:`token_values` with these parameters.

        Asked before the model is loaded, as :meth:`may_observe` is.
        """
        return cls.logit_values is not Mixer.logit_values

    @property
    def observes_logits(self) -> bool:
        """Whether :meth:`logit_values` is called: where it is overridden. Asked once, before training."""
        return self.may_observe_logits({})

    def logit_values(
        self, inputs: Mapping[str, Any], losses_BT: torch.Tensor, logits_BTV: torch.Tensor
    ) -> torch.Tensor:
        """Returns what :meth:`observe` gets the means of, from the logits of training: (B, T). Optional.

        As :meth:`token_values`, which is not called then. A loss that is computed without logits is refused.

        Args:
            inputs: The micro-batch: ``input_ids`` (B, T), ``labels`` (B, T), ...
            losses_BT: (B, T) float32; the loss at t is that of predicting token t + 1, and 0 where that has no label.
            logits_BTV: (B, T, V) logits without gradient, in the type that the model computed them in.
        """
        raise NotImplementedError

    @classmethod
    def may_observe_gradients(cls, params: Mapping[str, Any]) -> bool:
        """Returns whether :meth:`observe_gradients` would be called with these parameters: where it is overridden.

        Asked before the model is loaded, to refuse what could not be observed.
        """
        return cls.observe_gradients is not Mixer.observe_gradients

    @property
    def observes_gradients(self) -> bool:
        """Whether :meth:`observe_gradients` is to be called. Asked once, before training."""
        return self.may_observe_gradients({})

    @property
    def gradient_sketch(self) -> GradientSketch:
        """Which gradients are measured, and what is kept of them. Asked once, before training."""
        return GradientSketch()

    def wants_gradients(self, step: int) -> bool:
        """Returns whether the gradients of the step that begins are to be measured; a step that is not costs nothing.

        Called before each optimizer step on every rank, which must all return the same.

        Args:
            step: Global optimizer steps done.
        """
        return True

    def observe_gradients(self, step: int, gradients: SourceGradients) -> None:
        """Receives the gradients of the sources in the last optimizer step, sketched.

        Optional. Called right after :meth:`observe` of a step for which :meth:`wants_gradients` was True, on every rank
        with the same numbers. They come from the backward pass of training itself, with what the objective multiplied
        each row's loss by taken out. It must not draw from global random generators; what it keeps belongs into
        :meth:`state_dict`.

        Args:
            step: Global optimizer steps done, this one included.
            gradients: The gradients.
        """

    @property
    def weighs(self) -> bool:
        """Whether the loss is weighed by :meth:`loss_weights`: where it is overridden."""
        return type(self).loss_weights is not Mixer.loss_weights

    def loss_weights(self) -> np.ndarray:
        """Returns how much a token of each source counts in the training loss: (K,), finite, 0 or more.

        Optional. Called before each optimizer step on every rank, which must all return the same. The loss of the step
        is the mean of its token losses with these weights, over all micro-batches and ranks, so only their ratios
        matter.
        """
        raise NotImplementedError

    def finish(self, step: int) -> None:
        """Called on every rank when training has ended, before the model is saved. Optional; for mixers that observe.

        Args:
            step: Global optimizer steps done.
        """

    def details(self) -> Mapping[str, Any]:
        """Returns more keys for the trace line of the update that :meth:`mix` has just decided. Optional.

        Returns:
            Name -> a plain value: a number, a text, a list or a mapping of these.
        """
        return {}
