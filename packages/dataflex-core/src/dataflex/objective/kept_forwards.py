"""The forward passes of a trainer's loss, kept so that the loss of each row is made of them: none is run again.

A trainer of preferences runs the policy, and often a reference model. It does so by methods of its own, which are
wrapped while it computes its loss, or by calls of the models, which are listened to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from dataflex.core.errors import ComponentError
from dataflex.upstream.stage_interface import StageLoss


class KeptForwards:
    """What the trainer ran of its models for a micro-batch: what each outermost call returned, in order.

    Args:
        trainer: The trainer.
        stage: The loss of its rows.
        model: The policy, as the trainer was given it.
    """

    def __init__(self, trainer: Any, stage: StageLoss, model: torch.nn.Module) -> None:
        self._trainer, self._stage, self._model = trainer, stage, model
        self._found: list[tuple[Any, Any]] = []  # the method's name, or the input_ids of a model; and the output
        self._depth = 0

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keeps what is run in this context."""
        with ExitStack() as stack:
            for name in self._stage.forwards:
                own = getattr(self._trainer, name)
                stack.enter_context(patch.object(self._trainer, name, self._around(name, own)))
            for module in self._models():
                stack.callback(module.register_forward_pre_hook(self._enter).remove)
                stack.callback(module.register_forward_hook(self._leave, with_kwargs=True).remove)
            yield

    def method(self, name: str) -> Callable[..., Any]:
        """Returns what stands in a method's place: it gives what the method gave to the trainer, call by call."""
        return lambda *args, **kwargs: self._taken(lambda key: isinstance(key, str) and key == name, name)

    def model(self, **inputs: Any) -> Any:
        """Stands in a model's place: gives what the trainer got for these inputs, from the policy first."""
        return self._taken(lambda key: key is inputs["input_ids"], "a model")

    def require_all_taken(self) -> None:
        """Refuses a trainer that ran more than its loss is known to be made of.

        Raises:
            ComponentError: It did.
        """
        if self._found:
            raise _unlike(f"ran {len(self._found)} more forward passes than its loss is made of")

    def _models(self) -> list[torch.nn.Module]:
        """Returns the models to listen to. With adapters the reference is the policy, without the engine around it."""
        if self._stage.forwards:
            return []  # these run them
        if self._stage.reference is None:
            return [self._model]
        reference = vars(self._trainer)[self._stage.reference]
        other = self._trainer.model if reference is None else reference
        return [self._model] if other is self._model else [self._model, other]

    def _around(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            try:
                found = own(*args, **kwargs)
            finally:
                self._depth -= 1
            self._keep(name, found)
            return found

        return call

    def _enter(self, module: torch.nn.Module, args: Any) -> None:
        self._depth += 1

    def _leave(self, module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._depth -= 1
        self._keep(kwargs.get("input_ids"), output)

    def _keep(self, key: Any, found: Any) -> None:
        if not self._depth:  # what one of them calls is part of what it returns
            self._found.append((key, found))

    def _taken(self, wanted: Callable[[Any], bool], name: str) -> Any:
        place = next((place for place, (key, _) in enumerate(self._found) if wanted(key)), None)
        if place is None:
            raise _unlike(f"did not call {name} where its loss does")
        return self._found.pop(place)[1]


def _unlike(what: str) -> ComponentError:
    return ComponentError(
        f"the trainer {what}, so the loss of a row is not known -> use the trainer of the stage as it is"
    )
