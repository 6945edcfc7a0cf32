"""A causal model's token losses where there is a label: without the logits where nothing else is made of them.

Letters: B rows of the batch, T tokens, V vocabulary, M label positions of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from dataflex.model.cross_entropy import token_loss_gradients, token_losses
from dataflex.model.label_logits import logits_at_labels
from dataflex.model.output_losses import OutputLosses, plain_output_layer

LEAST_VOCABULARY = 2**13
"""From here on the logits of a batch leave the caches of a CPU."""


@dataclass(frozen=True)
class LabelOutputs:
    """What a model gave at label positions.

    Attributes:
        values: (M,) float32 token losses, or (M, V) logits.
        targets: (M,) token ids.
        are_losses: Which of the two.
    """

    values: torch.Tensor
    targets: torch.Tensor
    are_losses: bool

    def losses(self) -> torch.Tensor:
        """Returns the (M,) float32 token losses."""
        return self.values if self.are_losses else token_losses(self.values, self.targets.to(self.values.device))

    def slopes(self, weights_M: torch.Tensor) -> torch.Tensor:
        """Returns the gradient at ``values`` of the sum of the token losses with these (M,) weights."""
        weights_M = weights_M.to(self.values.device)
        if self.are_losses:
            return weights_M
        # Through autograd, the losses of logits would keep all log-probabilities.
        return token_loss_gradients(self.values.detach(), self.targets.to(self.values.device), weights_M)


Outputs = Callable[[Mapping[str, Any], torch.Tensor, torch.Tensor, torch.Size], LabelOutputs]
"""``outputs(inputs, positions_M, targets_M, (B, T)) -> LabelOutputs``."""

LabelLosses = Callable[[Mapping[str, Any], torch.Tensor, torch.Tensor, torch.Size], torch.Tensor]
"""``losses(inputs, positions_M, targets_M, (B, T)) -> losses_M``."""


@contextmanager
def outputs_at_labels(model: torch.nn.Module, chunked: bool | None = None) -> Iterator[Outputs]:
    """Yields a function that runs ``model``, with gradients or without, up to its token losses or its logits.

    Args:
        model: A causal language model, inside of any wrappers.
        chunked: Whether to leave the logits out; None: from a vocabulary of 8,192 on. A model that changes its logits
            behind the output layer is run with them in any case. With gradients, the output layer must be frozen.

    Raises:
        ComponentError: As :func:`~dataflex.scoring.logits_at_labels`.
    """
    layer = plain_output_layer(model) if chunked is not False else None
    if layer is not None and chunked is None and layer.out_features < LEAST_VOCABULARY:
        layer = None
    output = None if layer is None else OutputLosses(layer)

    with logits_at_labels(model) as forward:

        def outputs(
            inputs: Mapping[str, Any], positions_M: torch.Tensor, targets_M: torch.Tensor, shape: torch.Size
        ) -> LabelOutputs:
            nonlocal output
            if output is not None and len(positions_M):
                every_M = torch.arange(len(positions_M), device=positions_M.device)  # the hook lets these alone pass
                with output.at(every_M, targets_M, len(every_M)):
                    found = forward(inputs, positions_M, shape)
                    if output.gave(found.unsqueeze(0)):  # (1, M, 1), as the layer was called
                        return LabelOutputs(found[:, 0], targets_M, are_losses=True)
                output = None
            return LabelOutputs(forward(inputs, positions_M, shape), targets_M, are_losses=False)

        yield outputs


@contextmanager
def losses_at_labels(model: torch.nn.Module, chunked: bool | None = None) -> Iterator[LabelLosses]:
    """Yields a function that runs ``model`` without gradients and returns its (M,) float32 token losses.

    Arguments and errors are those of :func:`outputs_at_labels`.
    """
    with outputs_at_labels(model, chunked) as outputs:
        yield lambda inputs, positions_M, targets_M, shape: outputs(inputs, positions_M, targets_M, shape).losses()
