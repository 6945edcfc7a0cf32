"""A stretch of code that looks at a model and leaves no trace on the run.

Every call of a component runs inside :func:`undisturbed`, so that a run with a strategy that always decides the same
is, bit for bit, the run without it. What is put back: the training flag of every submodule, the global random states,
``config.use_cache``. What is refused: gradients left in ``.grad``, because the next optimizer step would apply them.
Not covered: weights and buffers that a component writes to, and the random state of Apple's MPS, which has no state
per device.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from dataflex.core.errors import ComponentError
from dataflex.model.unwrapped import pretrained_models


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Puts ``model`` into eval mode for the block, and everything back afterwards, also when the block raises.

    Makes no collective call; every rank enters it for itself. Gradient checkpointing is inactive in eval mode.

    Args:
        model: The model being trained, wrapped or not.

    Raises:
        ComponentError: The block left a gradient behind or added to one. What it left is removed; what it added to an
            existing gradient cannot be.
    """
    with ExitStack() as stack:
        stack.enter_context(same_random_states())
        stack.enter_context(_same_use_cache(model))
        stack.enter_context(_same_gradients(model))
        stack.enter_context(_eval_mode(model))
        yield


@contextmanager
def _eval_mode(model: torch.nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(flags[0][1])  # for modules that do more in it than set their flag; then each one's own flag
        for module, training in flags:
            if module.training is not training:  # setting an attribute of a module is slow
                module.training = training


@contextmanager
def same_random_states() -> Iterator[None]:
    """Puts the global random states of this process back after the block: Python's, NumPy's and torch's."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = "cuda" if accelerator is None or accelerator.type == "mps" else accelerator.type
    devices = range(torch.accelerator.device_count()) if accelerator is not None and kind == accelerator.type else ()
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=devices, device_type=kind):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


@contextmanager
def _same_use_cache(model: torch.nn.Module) -> Iterator[None]:
    configs = {id(m.config): m.config for m in pretrained_models(model)}.values()
    before = [(config, config.use_cache) for config in configs if "use_cache" in vars(config)]
    try:
        yield
    finally:
        for config, use_cache in before:
            config.use_cache = use_cache


@contextmanager
def _same_gradients(model: torch.nn.Module) -> Iterator[None]:
    # A gradient that is added to in place stays the same object; its version number tells.
    before = [(name, p, p.grad, _version(p.grad)) for name, p in model.named_parameters()]
    disturbed: list[str] = []
    try:
        yield
    finally:
        for name, parameter, gradient, version in before:
            if parameter.grad is not gradient or _version(gradient) != version:
                disturbed.append(name)
                parameter.grad = gradient
    if disturbed:
        others = f" and {len(disturbed) - 1} more" if len(disturbed) > 1 else ""
        raise ComponentError(
            f"gradients were left in .grad of {disturbed[0]}{others}; the next optimizer step would have applied them "
            "-> use torch.autograd.grad, or torch.no_grad where no gradient is wanted"
        )


def _version(tensor: torch.Tensor | None) -> int:
    return -1 if tensor is None else tensor._version
