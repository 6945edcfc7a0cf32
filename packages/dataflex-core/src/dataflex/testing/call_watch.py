"""Watches the calls of a component: what they change that is not theirs, and what global random numbers do to them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from dataflex.core.component import Component
from dataflex.core.kinds import MIXER, ORDER, SELECTOR, WEIGHTER, Kind

DECIDES = {SELECTOR: "select", MIXER: "mix", ORDER: "arrange", WEIGHTER: "get_weighted_loss"}
"""Kind -> the method that decides."""
_WHILE_DECIDING = {
    SELECTOR: ("select", "warmup", "explain"),
    MIXER: ("mix",),
    ORDER: ("arrange", "share"),
    WEIGHTER: (),
}
_WHILE_TRAINING = {
    SELECTOR: (),
    MIXER: ("observe", "token_values", "loss_weights", "finish"),
    ORDER: (),
    WEIGHTER: ("get_weighted_loss",),
}


class CallWatch:
    """Stands before the methods of a component.

    Args:
        trainer: The trainer.
        kind: The component's kind.
        scrambled: Whether the global generators are set to something else before each decision. The trainer puts them
            back, so that a component which draws from its own generator alone decides as ever.

    Attributes:
        changed: What a call changed that is not the component's: sentences, each once.
        drew: How often it asked for its generator while it was called.
        decided: How often it decided.
    """

    def __init__(self, trainer: Any, kind: Kind, scrambled: bool = False) -> None:
        self._trainer, self._kind, self._scrambled = trainer, kind, scrambled
        self.changed: dict[str, None] = {}
        self.drew = self.decided = self._calls = self._inside = 0

    def stand_before(self, component: Any) -> None:
        """Watches the methods of a component that a run calls."""
        for name in (*_WHILE_DECIDING[self._kind], *_WHILE_TRAINING[self._kind]):
            training = name in _WHILE_TRAINING[self._kind]
            vars(component)[name] = self._watched(name, component, training)
        if isinstance(component, Component):
            vars(component)["generator"] = self._counted(component.generator)

    def _watched(self, name: str, component: Any, training: bool) -> Callable[..., Any]:
        method = _bound(component, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self._calls += 1
            self.decided += name == DECIDES[self._kind]
            if self._scrambled and not training:
                _scramble(self._calls)
            before = _state_of(self._trainer)
            kept = component.state_dict() if name == "explain" else None
            self._inside += 1
            try:
                answer = method(*args, **kwargs)
            finally:
                self._inside -= 1
            for what in _differences(before, _state_of(self._trainer), random_too=training):
                self.changed[f"{name} {what}"] = None
            if kept is not None and not same(kept, component.state_dict()):
                self.changed["explain changed what the component remembers"] = None
            return answer

        return watched

    def _counted(self, generator: Callable[..., Any]) -> Callable[..., Any]:
        def counted(update: object) -> Any:
            self.drew += self._inside > 0  # a trainer draws from it too, for what the component leaves open
            return generator(update)

        return counted


def _bound(component: Any, name: str) -> Callable[..., Any]:
    for cls in type(component).__mro__:
        if name in vars(cls):
            found: Callable[..., Any] = vars(cls)[name].__get__(component, type(component))
            return found
    raise AssertionError(f"{type(component).__name__} has no {name}")


def _scramble(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def _state_of(trainer: Any) -> dict[str, Any]:
    """Returns everything of a run that a component must leave as it is, copied."""
    model = trainer.model
    optimizer = {} if trainer.optimizer is None else trainer.optimizer.state_dict()
    parameters = dict(model.named_parameters())
    return {
        "weights": {name: each.detach().clone() for name, each in (parameters | dict(model.named_buffers())).items()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()},
        "the training mode of modules": {name: module.training for name, module in model.named_modules()},
        "what is trained": {name: p.requires_grad for name, p in parameters.items()},
        "the optimizer": _copied(optimizer),
        "random numbers": {
            "torch": torch.get_rng_state(),
            "numpy": list(np.random.get_state()),
            "python": random.getstate(),
        },
    }


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], random_too: bool) -> Iterator[str]:
    words = {
        "weights": "changed the weight {0} -> put it back, or leave the model as it is",
        "gradients": "left a gradient in .grad of {0} -> use torch.autograd.grad",
        "the training mode of modules": "left the training mode of the module '{0}' changed",
        "what is trained": "changed requires_grad of {0}",
        "the optimizer": "changed the optimizer ({0})",
        "random numbers": "drew from the global generator of {0} -> draw from self.generator",
    }
    for what, sentence in words.items():
        if what == "random numbers" and not random_too:
            continue
        a, b = before[what], after[what]
        wrong = [key for key in sorted({*a, *b}, key=str) if not same(a.get(key), b.get(key))]
        if wrong:
            yield sentence.format(wrong[0])


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list | tuple) else value


def same(a: Any, b: Any) -> bool:
    """Returns whether two nested states are equal to the last bit; NaN equals NaN."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.dtype == b.dtype):
            return False
        a, b = a.detach().cpu(), b.detach().cpu()
        return a.shape == b.shape and (torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all()))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        a, b = np.asarray(a), np.asarray(b)
        return a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f" == b.dtype.kind)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) or (isinstance(a, float) and isinstance(b, float) and a != a and b != b)
