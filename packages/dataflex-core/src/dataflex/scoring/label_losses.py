"""A causal model's token losses where there is a label: from the logits, or without them where they are large."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from dataflex.scoring.cross_entropy import token_losses
from dataflex.scoring.label_logits import logits_at_labels
from dataflex.scoring.linear_cross_entropy import LARGE_VOCABULARY
from dataflex.scoring.output_losses import OutputLosses, plain_output_layer

LabelLosses = Callable[[Mapping[str, Any], torch.Tensor, torch.Tensor, torch.Size], torch.Tensor]
"""``losses(inputs, positions_M, targets_M, (B, T)) -> losses_M``."""


@contextmanager
def losses_at_labels(model: torch.nn.Module, chunked: bool | None = None) -> Iterator[LabelLosses]:
    """Yields a function that runs ``model`` without gradients and returns its (M,) float32 token losses.

    Args:
        model: A causal language model, inside of any wrappers.
        chunked: Whether to leave the logits out; None: from a vocabulary of 65,536 on. A model that changes its logits
            behind the output layer is run with them in any case.

    Raises:
        ComponentError: As :func:`~dataflex.scoring.logits_at_labels`.
    """
    layer = plain_output_layer(model) if chunked is not False else None
    if layer is not None and chunked is None and layer.out_features < LARGE_VOCABULARY:
        layer = None
    output = None if layer is None else OutputLosses(layer)

    with logits_at_labels(model) as forward:

        def losses(
            inputs: Mapping[str, Any], positions_M: torch.Tensor, targets_M: torch.Tensor, shape: torch.Size
        ) -> torch.Tensor:
            nonlocal output
            if output is not None and len(positions_M):
                every_M = torch.arange(len(positions_M), device=positions_M.device)  # the hook lets these alone pass
                with output.at(every_M, targets_M, len(every_M)):
                    found = forward(inputs, positions_M, shape)
                    if output.gave(found):
                        return found[:, 0]
                output = None
            logits_MV = forward(inputs, positions_M, shape)
            return token_losses(logits_MV, targets_M.to(logits_MV.device))

        yield losses
