"""The last hidden states of a training forward, for weighters that look at them: no second forward is made.

A hook in front of the output layer sees what it is given, whoever calls the model. Where the layer's weight is used and
the layer is not called, as TRL's fused head does, the states are those that the model below it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from dataflex.core.errors import ComponentError, ConfigError
from dataflex.model.unwrapped import is_compiled, output_embeddings, pretrained_models

Caught = Callable[[], torch.Tensor]
"""``caught() -> hidden_BTH`` of the last forward, after the final norm, still part of the graph."""


def require_hidden_states(model: torch.nn.Module, who: str, *, compiled: bool) -> None:
    """Refuses a model whose hidden states cannot be seen. Called when the trainer is made, before any step.

    Args:
        model: The model, before an engine wraps it.
        who: The weighter that looks at them.
        compiled: Whether it will be compiled.

    Raises:
        ConfigError: With the way out.
    """
    if compiled:
        raise ConfigError(
            f"torch_compile: {who} looks at the hidden states of the training forward, which compiled code does not "
            "show -> set torch_compile: false, or use another weighter"
        )
    if output_embeddings(pretrained_models(model)) is None:
        raise ConfigError(
            f"{who} looks at what the output layer is given, and {type(model).__name__} names no output layer -> use a "
            "causal language model of transformers, or another weighter"
        )


@contextmanager
def caught_hidden_states(model: torch.nn.Module) -> Iterator[Caught]:
    """Yields a function that returns the hidden states of the last forward inside the block.

    They are let go when the block ends.

    Args:
        model: A causal language model of ``transformers``, inside of any wrappers.

    Raises:
        ComponentError: The model is compiled or has no output layer; from the function: the output layer was not given
            vectors of tokens.
    """
    bases = pretrained_models(model)
    layer = None if is_compiled(model) else output_embeddings(bases)
    if layer is None:
        raise ComponentError(
            f"the hidden states of {type(model).__name__} cannot be seen: it is compiled, or has no output layer -> "
            "set torch_compile: false, or use another weighter"
        )
    states: list[torch.Tensor] = []

    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        states[:] = args[:1]

    def caught() -> torch.Tensor:
        if not states or states[0].ndim != 3:
            found = tuple(states[0].shape) if states else "nothing"
            raise ComponentError(f"the output layer was given {found}, expected a vector for each token of each row")
        return states[0]

    def below(module: torch.nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Mapping) and "last_hidden_state" in output:
            states[:] = [output["last_hidden_state"]]

    handles = [base.base_model.register_forward_hook(below) for base in bases if base.base_model is not base]
    handles.append(layer.register_forward_pre_hook(hook))  # called later: where it is, its states stand
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()
        states.clear()
