"""The output layer made to give token losses in the place of logits, while a model runs as it always does.

The layer is called by the model itself, so engines that gather its weights for that call are served, and no model's
forward is copied. What comes out is (B, T, 1), where logits would be. Only code that checks ``gave()`` may treat it as
losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import PretrainedConfig

from dataflex.scoring.linear_cross_entropy import linear_cross_entropy
from dataflex.scoring.models import is_compiled, output_embeddings, pretrained_models

# What a model of transformers may do to its logits after the output layer; 0, 1 and None do nothing.
_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "logits_soft_cap", "output_multiplier_scale")


def plain_output_layer(model: torch.nn.Module) -> torch.nn.Linear | None:
    """Returns the output layer where the logits are nothing but what it gives, else None.

    It is None for a layer that is adapted, quantised, sharded for itself or compiled, and for models whose
    configuration says that they scale or cap their logits.

    Args:
        model: A causal language model of ``transformers``, inside of any wrappers.
    """
    bases = pretrained_models(model)
    layer = None if is_compiled(model) else output_embeddings(bases)
    if type(layer) is not torch.nn.Linear or any(_changes_logits(base.config) for base in bases):
        return None
    return layer


class OutputLosses:
    """An output layer that can be made to give losses.

    Args:
        layer: What :func:`plain_output_layer` returned.
    """

    def __init__(self, layer: torch.nn.Linear) -> None:
        self.layer = layer
        self._given: torch.Tensor | None = None

    @contextmanager
    def at(self, positions_M: torch.Tensor, targets_M: torch.Tensor, tokens: int) -> Iterator[None]:
        """Inside of it, the layer gives the losses of M tokens: (..., 1) float32, 0 for all other tokens.

        Where it is given another number of tokens than is expected, it gives logits, as always.

        Args:
            positions_M: (M,) positions in its flattened input.
            targets_M: (M,) token ids.
            tokens: How many tokens it will be given.
        """

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            flat, device = hidden.flatten(0, -2), hidden.device
            if len(flat) != tokens:
                return torch.nn.Linear.forward(self.layer, hidden)
            places = positions_M.to(device)
            losses_M = linear_cross_entropy(
                flat.index_select(0, places), self.layer.weight, self.layer.bias, targets_M.to(device)
            )
            losses = losses_M.new_zeros(len(flat)).index_copy(0, places, losses_M)
            self._given = losses.view(*hidden.shape[:-1], 1)
            return self._given

        with _forward_of(self.layer, forward):
            try:
                yield
            finally:
                self._given = None

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Inside of it, the layer gives logits: for a forward pass in the middle of another one."""
        given = self._given
        with _forward_of(self.layer, None):
            try:
                yield
            finally:
                self._given = given

    def gave(self, logits: torch.Tensor) -> bool:
        """Returns whether these are the losses as they left the layer, and nothing was done to them."""
        return bool(self.unchanged(logits))

    def unchanged(self, logits: torch.Tensor) -> torch.Tensor | bool:
        """As :meth:`gave`, without a wait of the host: a bool, or a bool of no dimensions on the device.

        What the ranks' engine has copied on the way out of the model is told by its values.
        """
        given = self._given
        if given is None or (logits.shape, logits.dtype, logits.device) != (given.shape, given.dtype, given.device):
            return False
        if logits.data_ptr() == given.data_ptr():
            return True
        found, expected = logits.detach(), given.detach()
        return ((found == expected) | (found.isnan() & expected.isnan())).all()


@contextmanager
def _forward_of(layer: torch.nn.Linear, forward: Callable[[torch.Tensor], torch.Tensor] | None) -> Iterator[None]:
    """Inside of it, the layer has this forward; with None its class's own."""
    before = vars(layer).pop("forward", None)
    if forward is not None:
        layer.forward = forward  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        vars(layer).pop("forward", None)  # the class's own shows again
        if before is not None:
            layer.forward = before  # type: ignore[method-assign]


def _changes_logits(config: PretrainedConfig) -> bool:
    return any(getattr(config, key, None) not in (None, 0, 1) for key in _CHANGES)
