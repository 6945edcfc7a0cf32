"""Where a model uses its trainable parameters: in which module's call each one meets another tensor.

A rule for a layer holds where a parameter is used in its own layer's call and nowhere else. Models break that: Mamba
hands the weight of its convolution to a kernel, PEFT multiplies the two matrices of an adapter without calling them.
One forward tells: every operation of torch is looked at, and the innermost module whose call is running is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dataflex.core.errors import ComponentError
from dataflex.scoring.passes.budget import is_out_of_memory

FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)
"""What a layer raises that is called with what it cannot take."""


@dataclass
class Uses:
    """What one forward has shown. Modules go by their names; ``""`` is the whole model.

    Attributes:
        places: By id of a parameter, the modules in whose calls it is used; a parameter that no row reaches has none.
        called: The modules that are called.
        changed: Those among them whose inputs or outputs are changed in place afterwards.
    """

    places: dict[int, set[str]] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)


class _Watch(TorchFunctionMode):
    def __init__(self, wanted: set[int], uses: Uses) -> None:
        super().__init__()
        self.stack: list[str] = []
        self._wanted, self._uses = wanted, uses

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if torch.is_grad_enabled():
            given = [id(value) for value in _flat((*args, *(kwargs or {}).values())) if id(value) in self._wanted]
            if given and (found is None or any(_differentiable(value) for value in _flat((found,)))):
                for key in given:
                    self._uses.places.setdefault(key, set()).add(self.stack[-1] if self.stack else "")
        return found


def find_uses(model: nn.Module, parameters: Mapping[int, nn.Parameter], run: Callable[[], torch.Tensor]) -> Uses:
    """Runs the model once and returns where its parameters are used.

    Args:
        model: The model; no gradient of it is computed but where a parameter's use cannot be seen.
        parameters: The trainable ones, by id.
        run: The forward.

    Raises:
        ComponentError: A layer of the model raises an error; the message names it.
    """
    uses = Uses()
    watch = _Watch(set(parameters), uses)
    seen: Seen = []
    handles = [
        handle
        for name, module in model.named_modules()
        for handle in (
            module.register_forward_pre_hook(_entering(watch.stack, uses.called, seen, name), with_kwargs=True),
            module.register_forward_hook(_leaving(watch.stack, seen)),
        )
    ]
    try:
        with torch.enable_grad(), requiring(parameters.values()):
            try:
                with watch:
                    output = run()
            except FAILURES as error:
                if is_out_of_memory(error) or isinstance(error, ComponentError):
                    raise
                raise ComponentError(_failure(model, watch.stack, error)) from error
            uses.changed = {name for name, tensor, version in seen if tensor._version != version}
            # A kernel of its own (an autograd.Function) is no operation of torch's.
            unseen = [p for key, p in parameters.items() if key not in uses.places]
            if unseen and output.requires_grad and output.numel():
                grads = torch.autograd.grad(output.float().sum(), unseen, allow_unused=True)
                uses.places.update({id(p): {""} for p, grad in zip(unseen, grads, strict=True) if grad is not None})
    finally:
        for handle in handles:
            handle.remove()
        torch.clear_autocast_cache()  # it has weights that require a gradient
    return uses


@contextmanager
def requiring(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Lets parameters require gradients for the block."""
    before = [(parameter, parameter.requires_grad) for parameter in parameters]
    for parameter, _ in before:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


Seen = list[tuple[str, torch.Tensor, int]]
"""Tensors that modules were given or returned, with their versions of then: an operation in place raises it."""


def _entering(stack: list[str], called: set[str], seen: Seen, name: str) -> Callable[..., None]:
    def entering(module: nn.Module, args: Any, kwargs: Any) -> None:
        stack.append(name)
        called.add(name)
        _note(seen, name, (*args, *kwargs.values()))

    return entering


def _leaving(stack: list[str], seen: Seen) -> Callable[..., None]:
    def leaving(module: nn.Module, args: Any, output: Any) -> None:
        _note(seen, stack.pop(), output.values() if isinstance(output, Mapping) else (output,))

    return leaving


def _note(seen: Seen, name: str, values: Iterable[Any]) -> None:
    seen += [(name, value, value._version) for value in _flat(values) if isinstance(value, torch.Tensor)]


def _failure(model: nn.Module, stack: list[str], error: BaseException) -> str:
    name = stack[-1] if stack else ""
    layer = f"the layer {name} ({type(model.get_submodule(name)).__name__})" if name else type(model).__name__
    return (
        f"{layer} fails when the model is called: {type(error).__name__}: {error} -> leave it out of what is trained "
        "(lora_target), or train another model"
    )


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple | list):
            yield from _flat(value)
        else:
            yield value


def _differentiable(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad
