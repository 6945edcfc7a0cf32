"""The one replacement of the loss of a causal model, for trainers that say how much each token counts.

A trainer of ``transformers`` computes it in one of four places: in the model's own loss function, in the label
smoother, in a ``compute_loss_func``, as LLaMA-Factory's DFT loss, or in the model's forward, for classes that ask no
loss function. Each is replaced by a function that asks the trainer first; what is around the loss (auxiliary losses,
accumulation, the average over ranks) stays as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from dataflex.core.errors import ConfigError
from dataflex.model.unwrapped import without_adapter
from dataflex.objective.loss_trial import LossTrial
from dataflex.objective.token_losses import CROSS_ENTROPY, DynamicFineTuning, LabelSmoothing, TokenLoss
from dataflex.scoring.passes.row_pass import Collator

if TYPE_CHECKING:
    from transformers import Trainer

OwnLoss = Callable[[torch.Tensor, torch.Tensor, TokenLoss], torch.Tensor | None]
"""``own(logits, labels, token_loss)`` -> the loss of a micro-batch; None: the plain one is to be computed."""


class ReplacedLoss:
    """Has a trainer ask ``own`` wherever it computes a loss. Another ``compute_loss_func`` is left as it is.

    Args:
        trainer: The trainer, with its model not yet wrapped.
        own: What it asks.
        dft: Whether its ``compute_loss_func``, where it has one, is the DFT loss.
        without_logits: Whether ``own`` is given losses in the place of logits at this moment; no class can make a
            loss of these by itself.

    Attributes:
        takes_count: Whether the plain loss is divided by the labels of the step where the loop counts them, and not by
            those of the micro-batch. Known once :meth:`require` is back.

    Raises:
        ConfigError: The model has no loss function that could be replaced.
    """

    def __init__(
        self, trainer: Trainer, own: OwnLoss, dft: bool, without_logits: Callable[[], bool] = lambda: False
    ) -> None:
        base = without_adapter(trainer.accelerator.unwrap_model(trainer.model))
        if not isinstance(base, PreTrainedModel):
            raise ConfigError(
                f"the loss of {type(base).__name__} cannot be weighed -> use a model class of transformers"
            )
        self.takes_count = True
        self._trainer, self._base, self._own, self._without_logits = trainer, base, own, without_logits
        self._asked = False
        self._plain: Any = base.loss_function
        base.loss_function = self._of_model
        if trainer.compute_loss_func is not None:
            if dft:
                trainer.compute_loss_func = self._of_function(trainer.compute_loss_func)
        elif trainer.label_smoother is not None:
            trainer.label_smoother = self._of_smoother(trainer.label_smoother)

    def require(self, collator: Collator, rows: Sequence[Mapping[str, Any]], who: str, chunked: bool = False) -> None:
        """Has the model compute the loss of some rows; a class that asks no loss function is asked for its logits.

        Under an engine that shards the weights every rank calls it.

        Args:
            collator: Makes a batch of tensors from a list of rows.
            rows: Rows with labels; nothing is tried without any.
            who: What weighs the loss, in words.
            chunked: Whether the run leaves out the logits.

        Raises:
            ConfigError: The class asks none, and its loss is not that of its logits.
        """
        trainer = self._trainer
        if not rows or trainer.label_smoother is not None or trainer.compute_loss_func is not None:
            return  # the trainer asks
        assert isinstance(trainer.model, torch.nn.Module)
        self._asked = False
        trial = LossTrial(trainer.model, collator, rows)
        if self._asked:
            return
        self.takes_count = trial.takes_count() if trainer.model_accepts_loss_kwargs else False
        trial.require(who, without_labels=chunked)
        self._of_logits()

    def _of_model(self, logits: Any, labels: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's loss function. Flattened tokens are of no row that is known any more."""
        found = None
        if labels is not None and by_token(logits, labels):
            self._asked = True
            found = self._own(logits, labels, CROSS_ENTROPY)
        return self._plain(logits, labels, *args, **kwargs) if found is None else found

    def _of_logits(self) -> None:
        """Replaces the loss that the model's forward returns by one of its logits."""
        base, forward_of_class = self._base, self._base.forward
        base.loss_function = self._plain  # a part of the model may ask it for something else

        @functools.wraps(forward_of_class)  # transformers reads the signature
        def forward(*args: Any, **kwargs: Any) -> Any:
            labels = kwargs.get("labels")
            alone = labels is not None and self._without_logits()
            output = forward_of_class(*args, **(kwargs | {"labels": None} if alone else kwargs))
            logits = output.get("logits") if isinstance(output, Mapping) else None
            if logits is not None and labels is not None and by_token(logits, labels):
                found = self._own(logits, labels, CROSS_ENTROPY)
                if found is not None:
                    output["loss"] = found
            return output

        base.forward = forward

    def _of_function(self, plain: Any) -> Any:
        def compute_loss_func(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
            found = None if labels is None else self._own(outputs["logits"], labels, DynamicFineTuning())
            return plain(outputs, labels, num_items_in_batch=num_items_in_batch) if found is None else found

        return compute_loss_func

    def _of_smoother(self, plain: Any) -> Any:
        def label_smoother(outputs: Any, labels: Any, shift_labels: bool = False, **counted: Any) -> Any:
            # Newer releases hand the number of labels of the step on, as the mean is over the step there
            # (transformers 47261); ``own`` has counted for itself in all of them.
            found = self._own(outputs["logits"], labels, LabelSmoothing(plain.epsilon))
            return plain(outputs, labels, shift_labels=shift_labels, **counted) if found is None else found

        return label_smoother


def by_token(logits: Any, labels: torch.Tensor) -> bool:
    """Whether there are logits (B, T, ...) of the labels (B, T)."""
    return isinstance(logits, torch.Tensor) and logits.ndim == 3 and labels.shape == logits.shape[:2]
