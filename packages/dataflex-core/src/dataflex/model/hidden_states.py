"""A causal model's last hidden states: what its output layer is given.

They are caught by a hook in front of that layer, which then lets a single position pass, so the logits, most of the
memory of a forward pass and a good part of its time, are not computed. The hook is called by whatever calls the model,
so engines that gather weights in the outer forward are served.

Rejected: calling the decoder alone (engines do not see that call); ``output_hidden_states`` (keeps the states of every
layer) except where a hook is out of the question.

Letters: B rows of the batch, T tokens, H width of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from dataflex.core.errors import ComponentError
from dataflex.model.unwrapped import is_compiled, output_embeddings, pretrained_models, require_causal

Forward = Callable[[Mapping[str, Any]], torch.Tensor]
"""``forward(inputs) -> hidden_BTH``."""


@contextmanager
def last_hidden_states(model: torch.nn.Module) -> Iterator[Forward]:
    """Yields a function that runs ``model`` and returns its last hidden states: (B, T, H), after the final norm.

    A model without output embeddings, or that does not call them with the states of all tokens, or that is compiled,
    takes the general route: ``output_hidden_states``. It is slower and gives the same numbers.

    Args:
        model: A causal language model of ``transformers``, inside of any wrappers (PEFT, FSDP, DeepSpeed).

    Raises:
        ComponentError: The model is an encoder-decoder, or gives no hidden state per token.
    """
    bases = pretrained_models(model)
    require_causal(bases)
    options: dict[str, Any] = {"use_cache": False, "return_dict": True} if bases else {}
    layer = None if is_compiled(model) else output_embeddings(bases)
    catcher = _Catcher()
    handle = None if layer is None else layer.register_forward_pre_hook(catcher)

    def forward(inputs: Mapping[str, Any]) -> torch.Tensor:
        shape = inputs["input_ids"].shape
        if handle is not None and catcher.works:
            catcher.expect(shape)
            model(**inputs, **options)
            if (caught := catcher.taken()) is not None:
                return caught
        output = model(**inputs, **options, output_hidden_states=True) if bases else None
        states = output.get("hidden_states") if isinstance(output, Mapping) else None
        if states is None or states[-1].shape[:2] != shape:
            raise ComponentError(
                f"{type(bases[0] if bases else model).__name__} gives no hidden state per input token to make an "
                "embedding of -> use embeddings that are not made of hidden states"
            )
        found: torch.Tensor = states[-1]
        return found

    try:
        yield forward
    finally:
        if handle is not None:
            handle.remove()


class _Catcher:
    """A hook that keeps what it is given and lets one position pass."""

    def __init__(self) -> None:
        self.works = True  # until the model was seen not to call its output layer with the states of all tokens
        self.expect(torch.Size((0, 0)))

    def expect(self, shape: torch.Size) -> None:
        self._shape = shape
        self._caught: torch.Tensor | None = None

    def taken(self) -> torch.Tensor | None:
        caught, self._caught = self._caught, None  # kept here, it would take memory until the next batch
        self.works = caught is not None
        return caught

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = args[0] if args else None
        if not isinstance(hidden, torch.Tensor) or hidden.ndim != 3 or hidden.shape[:2] != self._shape:
            return None
        self._caught = hidden
        return (hidden[:, :1], *args[1:])


LayerForward = Callable[[Mapping[str, Any]], list[torch.Tensor]]
"""``forward(inputs) -> hidden_BTH`` of each wanted layer."""


def layer_count(model: torch.nn.Module) -> int:
    """Returns L, the decoder layers of a model: its hidden states are numbered 0 (the embeddings) to L (the last).

    Raises:
        ComponentError: It is no model of ``transformers``, an encoder-decoder, or does not say how many it has.
    """
    bases = pretrained_models(model)
    require_causal(bases)
    found = bases[0].config.get_text_config().to_dict().get("num_hidden_layers") if bases else None
    if not isinstance(found, int):
        raise ComponentError(
            f"{type(bases[0] if bases else model).__name__} does not say how many layers it has (num_hidden_layers) "
            "-> use a strategy that does not read single layers"
        )
    return found


@contextmanager
def hidden_states_of_layers(model: torch.nn.Module, layers: Sequence[int]) -> Iterator[LayerForward]:
    """Yields a function that runs ``model`` and returns the hidden states of some layers: (B, T, H) each.

    0 are the embeddings, L the states after the final norm. A batch keeps the states of all layers, 2 (L + 1) H bytes a
    token in bf16, in place of the logits, which are not computed where :func:`last_hidden_states` does not either.

    Args:
        model: A causal language model of ``transformers``, inside of any wrappers (PEFT, FSDP, DeepSpeed).
        layers: Numbers in [0, L].

    Raises:
        ComponentError: The model is an encoder-decoder, or gives no hidden state per token.
    """
    bases = pretrained_models(model)
    require_causal(bases)
    layer = None if is_compiled(model) else output_embeddings(bases)
    catcher = _Catcher()
    handle = None if layer is None else layer.register_forward_pre_hook(catcher)

    def forward(inputs: Mapping[str, Any]) -> list[torch.Tensor]:
        shape = inputs["input_ids"].shape
        catcher.expect(shape)
        output = model(**inputs, use_cache=False, return_dict=True, output_hidden_states=True) if bases else None
        catcher.taken()
        states = output.get("hidden_states") if isinstance(output, Mapping) else None
        if states is None or len(states) <= max(layers) or any(states[i].shape[:2] != shape for i in layers):
            raise ComponentError(
                f"{type(bases[0] if bases else model).__name__} gives no hidden state per input token and layer -> use "
                "a strategy that does not read single layers"
            )
        return [states[i] for i in layers]

    try:
        yield forward
    finally:
        if handle is not None:
            handle.remove()
