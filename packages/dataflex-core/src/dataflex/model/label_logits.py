"""A causal model's logits at the positions that have a label, and nowhere else.

In instruction data half of the positions or more are prompt and padding; for a model with a large vocabulary the output
layer is a good part of the forward pass and its logits are most of the memory. So the hidden states at label
positions are picked out in front of the output layer, by a hook on it: it sees (1, M, D) instead of (B, T, D).
Whatever the model does to its logits elementwise afterwards (scaling, soft-capping) still happens.

Rejected: calling the decoder and the output layer separately (loses that, and engines that gather weights in the outer
forward do not see the second call); ``logits_to_keep`` (the same positions for every row of the batch).

Letters: B rows of the batch, T tokens, D features, V vocabulary, M label positions of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from dataflex.core.errors import ComponentError
from dataflex.model.unwrapped import is_compiled, output_embeddings, pretrained_models, require_causal
from dataflex.rows.columns import IGNORED as IGNORED  # under this name too

Forward = Callable[[Mapping[str, Any], torch.Tensor, torch.Size], torch.Tensor]
"""``forward(inputs, positions_M, (B, T)) -> logits_MV``."""


def label_positions(labels_BT: torch.Tensor, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns where labels are predicted, and which: (M,) positions in the flattened (B, T), and (M,) tokens.

    The label at t is predicted at t - 1, as causal models of ``transformers`` shift it; the label at 0 is not
    predicted.

    Args:
        labels_BT: (B, T) labels, -100 where there is none.
        count: M where it is known: the host then does not wait for a device to count them.
    """
    targets_BT = torch.nn.functional.pad(labels_BT[:, 1:], (0, 1), value=IGNORED)
    labelled_X = (targets_BT != IGNORED).flatten()
    if count is None:
        positions_M = labelled_X.nonzero().flatten()
    else:  # those without a label are sorted behind those with one; the order in each stays
        positions_M = (~labelled_X).to(torch.uint8).argsort(stable=True)[:count]
    return positions_M, targets_BT.flatten()[positions_M]


@contextmanager
def logits_at_labels(model: torch.nn.Module) -> Iterator[Forward]:
    """Yields a function that runs ``model`` and returns its logits at the given positions only.

    A model in which ``get_output_embeddings`` finds nothing, or that does not call what it finds, or that is compiled,
    takes the general route: logits everywhere, then those positions. It is slower and gives the same numbers.

    Args:
        model: A causal language model, inside of any wrappers (PEFT, FSDP, DeepSpeed).

    Raises:
        ComponentError: The model is an encoder-decoder, or its logits do not belong to its input tokens one to one.
    """
    bases = pretrained_models(model)
    require_causal(bases)
    picker = _Picker(None if is_compiled(model) else output_embeddings(bases))
    options: dict[str, Any] = {"use_cache": False, "return_dict": True} if bases else {}

    def forward(inputs: Mapping[str, Any], positions_M: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        # Before the forward: a copy to the device in the middle of it would wait for all layers so far.
        picker.aim(positions_M.to(inputs["input_ids"].device), shape)
        output = model(**inputs, **options)
        logits: torch.Tensor = output["logits"] if isinstance(output, Mapping) else output[0]
        return picker.picked(logits)

    try:
        yield forward
    finally:
        picker.remove()


class _Picker:
    """A hook in front of the output layer that lets the hidden states at some positions pass."""

    def __init__(self, outputs: torch.nn.Module | None) -> None:
        self._handle: RemovableHandle | None = None
        if outputs is not None:
            self._handle = outputs.register_forward_pre_hook(self)
        self.aim(torch.empty(0, dtype=torch.long), torch.Size((0, 0)))

    def aim(self, positions_M: torch.Tensor, shape: torch.Size) -> None:
        self._positions_M, self._shape, self._passed = positions_M, shape, False

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = args[0] if args else None
        if not isinstance(hidden, torch.Tensor) or hidden.ndim != 3 or hidden.shape[:2] != self._shape:
            return None
        self._passed = True
        return (hidden.flatten(0, 1).index_select(0, self._positions_M.to(hidden.device)).unsqueeze(0), *args[1:])

    def picked(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns (M, V) logits from the model's: (1, M, V) where the hook ran, (B, T, V) where it did not."""
        expected = (1, len(self._positions_M)) if self._passed else tuple(self._shape)
        if tuple(logits.shape[:2]) != expected:
            raise ComponentError(
                f"the model returned logits of shape {tuple(logits.shape)} for input of shape {tuple(self._shape)}; a "
                "loss per sample needs one vector of logits per input token -> use a strategy that does not score "
                "the model"
            )
        logits = logits.flatten(0, 1)
        return logits if self._passed else logits.index_select(0, self._positions_M.to(logits.device))

    def remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
