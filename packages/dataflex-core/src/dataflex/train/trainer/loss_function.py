"""The one replacement of the loss of a causal model, for trainers that say how much each token counts.

A trainer of ``transformers`` computes it in one of three places: in the model's own loss function, in the label
smoother, or in a ``compute_loss_func``, as LLaMA-Factory's DFT loss. Each is replaced by a function that asks the
trainer first; what is around the loss (auxiliary losses, accumulation, the average over ranks) stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from dataflex.core.errors import ConfigError
from dataflex.train.weighter.token_losses import CROSS_ENTROPY, DynamicFineTuning, LabelSmoothing, TokenLoss

if TYPE_CHECKING:
    from transformers import Trainer

OwnLoss = Callable[[torch.Tensor, torch.Tensor, TokenLoss], torch.Tensor | None]
"""``own(logits, labels, token_loss)`` -> the loss of a micro-batch; None: the plain one is to be computed."""


def replace_loss(trainer: Trainer, own: OwnLoss, dft: bool) -> None:
    """Has the trainer ask ``own`` wherever it computes a loss. Another ``compute_loss_func`` is left as it is.

    Args:
        trainer: The trainer, with its model not yet wrapped.
        own: What it asks.
        dft: Whether its ``compute_loss_func``, where it has one, is the DFT loss.

    Raises:
        ConfigError: The model has no loss function that could be replaced.
    """
    base: Any = trainer.accelerator.unwrap_model(trainer.model)
    base = base.get_base_model() if isinstance(base, PeftModel) else base
    if not isinstance(base, PreTrainedModel):
        raise ConfigError(f"the loss of {type(base).__name__} cannot be weighed -> use a model class of transformers")
    plain: Any = base.loss_function

    def loss_function(logits: Any, labels: Any, *args: Any, **kwargs: Any) -> Any:
        _require_by_token(type(base).__name__, logits, labels)
        found = None if labels is None else own(logits, labels, CROSS_ENTROPY)
        return plain(logits, labels, *args, **kwargs) if found is None else found

    base.loss_function = loss_function
    smoother, loss_func = trainer.label_smoother, trainer.compute_loss_func
    if loss_func is not None and dft:

        def compute_loss_func(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
            found = None if labels is None else own(outputs["logits"], labels, DynamicFineTuning())
            return loss_func(outputs, labels, num_items_in_batch=num_items_in_batch) if found is None else found

        trainer.compute_loss_func = compute_loss_func
    elif loss_func is None and smoother is not None:

        def label_smoother(outputs: Any, labels: Any, shift_labels: bool = False) -> Any:
            found = own(outputs["logits"], labels, LabelSmoothing(smoother.epsilon))
            return smoother(outputs, labels, shift_labels=shift_labels) if found is None else found

        trainer.label_smoother = label_smoother  # type: ignore[assignment]  # called, never looked into


def _require_by_token(name: str, logits: Any, labels: Any) -> None:
    """Refuses a model that shifts or flattens tokens by itself: which row a token is of is known no more.

    Raises:
        ConfigError: The logits are not (B, T, V), or the labels not (B, T).
    """
    if labels is not None and (logits.ndim != 3 or labels.shape != logits.shape[:2]):
        raise ConfigError(
            f"{name} hands its loss function logits of shape {tuple(logits.shape)} and labels of shape "
            f"{tuple(labels.shape)}, which cannot be told apart by row, so its loss cannot be weighed -> use another "
            "version of the model's class, or train without a weighter"
        )
