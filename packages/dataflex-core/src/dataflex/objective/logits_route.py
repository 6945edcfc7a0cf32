"""Whether a weighted run makes the logits of a batch, or takes token losses straight from the output layer."""

from __future__ import annotations

from typing import Any

from dataflex.core.errors import ConfigError
from dataflex.model.linear_cross_entropy import LARGE_VOCABULARY
from dataflex.model.output_losses import OutputLosses, plain_output_layer


def output_losses(
    key: str, model: Any, *, smoothed: bool, compiled: bool, fused: bool, measured: bool
) -> OutputLosses | None:
    """Returns the output layer that gives losses, or None for the logits.

    Args:
        key: ``weight_logits``: ``auto``, ``full`` or ``chunked``.
        model: The model, before an engine wraps it.
        smoothed: Whether labels are smoothed, which takes the mean over the vocabulary.
        compiled: Whether the model will be compiled.
        fused: Whether the user asked for a fused loss, which is there to save the memory of the logits.
        measured: Whether the trainer underneath computes metrics from the logits of training, as TRL's do.

    Raises:
        ConfigError: ``chunked`` cannot be done for this run.
    """
    layer = plain_output_layer(model)
    reasons = {
        "label_smoothing_factor needs the logits": smoothed,
        "torch_compile traces the output layer": compiled,
        "the trainer of TRL computes its metrics from the logits": measured,
        f"the output layer of {type(model).__name__} is adapted or quantised, or its logits are scaled": layer is None,
    }
    against = [reason for reason, holds in reasons.items() if holds]
    if key == "chunked" and against:
        raise ConfigError(f"weight_logits: chunked cannot be done: {'; '.join(against)} -> set weight_logits: full")
    if key == "full" or against or layer is None:
        return None
    large = layer.out_features >= LARGE_VOCABULARY
    return OutputLosses(layer) if key == "chunked" or large or fused else None
