"""What is tried of one model: each cell compares a route of dataflex with the plain model, one row at a time.

A cell returns how far they are apart, in units of what is allowed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from dataflex.model.hidden_states import last_hidden_states
from dataflex.scoring import per_sample_gradients, per_sample_losses
from dataflex.scoring.gradients.sinks import Whole
from dataflex.scoring.passes.row_pass import RowBatch
from dataflex.scoring.trial import try_embeddings, try_gradients, try_losses
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.models.build import Collator, moved, rows
from tests.models.overrides import NO_ADAPTER
from tests.models.uniform import plain_run, weighted_run

LOSS = 1e-6
"""Losses may differ by this part of themselves: float32 has steps of 1.2e-7, and batches add up in another order."""

GRADIENT, OF_ALL = 1e-4, 2e-6
"""A gradient's numbers may differ by this part of the parameter's largest one, or of the whole model's largest."""

STATES = 1e-4
"""State-space layers add up in chunks that padding moves."""


class WrongError(Exception):
    """Two numbers that must be equal are not."""


class UpstreamError(Exception):
    """The plain model cannot be adapted, or not be run once it is."""


@torch.no_grad()
def plain_losses(model: nn.Module, collate: Collator) -> torch.Tensor:
    """Returns the loss that the model itself computes of each row alone."""
    return torch.stack([model(**collate([row])).loss.reshape(()) for row in rows()])


def losses(model: nn.Module, collate: Collator, chunked: bool) -> float:
    """Losses by row of one padded batch, by logits or by chunks of the output layer, behind what a selector tries."""
    try_losses(model, rows(), collate, None)
    found = per_sample_losses(model, rows(), collator=collate, progress=False, chunked=chunked)
    expected = plain_losses(model, collate)
    return _apart(torch.from_numpy(found), expected, LOSS * expected.abs().max(), "losses")


def hidden(model: nn.Module, collate: Collator) -> float:
    """Hidden states of one padded batch: what the plain model's output layer is given, for each row alone."""
    try_embeddings(model, rows(), np.arange(2), collate, None, "mean")
    batch = collate([*rows()])
    batch.pop("labels")
    with torch.no_grad(), last_hidden_states(model) as forward:
        found_BTH = forward(batch).clone()
    worst = 0.0
    for place, row in enumerate(rows()):
        alone = collate([row])
        alone.pop("labels")
        with torch.no_grad(), _given_to_output(model) as given:
            output = model(**alone, output_hidden_states=True)
        states = output["hidden_states"][-1] if output.get("hidden_states") is not None else None
        found = found_BTH[place, : len(row["input_ids"])]
        by_token = bool(given) and tuple(given[-1].shape[:2]) == (1, len(found))
        expected = given[-1][0] if by_token else states[0]
        worst = max(worst, _apart(found, expected, STATES * expected.abs().max(), "hidden states"))
    return worst


def states_are_last(model: nn.Module, collate: Collator) -> str:
    """Returns which hidden states are read: ``last``, or ``behind the last`` where the head changes them before."""
    batch = collate([*rows()])
    batch.pop("labels")
    with torch.no_grad(), last_hidden_states(model) as forward:
        found_BTH = forward(batch).clone()
        states = model(**batch, output_hidden_states=True).get("hidden_states")
    if states is None or not isinstance(states, (tuple, list)):
        return "output layer's input"
    same = states[-1].shape == found_BTH.shape and torch.allclose(states[-1], found_BTH, rtol=1e-4, atol=1e-5)
    return "last" if same else "output layer's input"


def gradients(model: nn.Module, collate: Collator) -> float:
    """Gradients of each row of one padded batch, of all that is trainable, behind what a selector tries."""
    try_gradients(model, rows(), collate, None)
    batch = collate([*rows()])
    labels = batch.pop("labels")
    with per_sample_gradients(model) as found:
        sink = Whole(len(labels), labels.device)
        found.backward(RowBatch(batch, labels), sink)
        names = {route.index: route.name for route in found.routes}
    try:
        expected = _autograd(model, collate)
    except RuntimeError as error:
        raise UpstreamError(f"the plain model has no gradients in eval mode: {error}") from error
    found_BD = {name: sink.vectors.get(index, torch.zeros_like(expected[name])) for index, name in names.items()}
    try:
        return _furthest(found_BD, expected)
    except WrongError:
        together = _autograd(model, collate, together=True)
        _furthest(found_BD, together)
        _require_alone(expected, together)
        raise


def _furthest(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    largest = max(float(g.abs().max()) for g in expected.values())
    worst = 0.0
    for name, vectors in found.items():  # zeros where no row reaches its layer
        allowed = max(GRADIENT * float(expected[name].abs().max()), OF_ALL * largest)
        worst = max(worst, _apart(vectors, expected[name], allowed, name))
    return worst


def _require_alone(alone: dict[str, torch.Tensor], together: dict[str, torch.Tensor]) -> None:
    try:
        _furthest(together, alone)
    except WrongError as error:
        raise UpstreamError(f"the plain model gives a row another gradient beside other rows: {error}") from error


def lora(model: nn.Module, collate: Collator) -> float:
    """Gradients through LoRA on all linear layers."""
    try:
        adapted = with_lora(model)
        plain_losses(adapted, collate)
    except Exception as error:
        raise UpstreamError(f"{type(error).__name__}: {error}") from error
    return gradients(adapted, collate)


def full(model: nn.Module, collate: Collator) -> float:
    """Gradients of every parameter."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return gradients(model, collate)


def with_lora(model: nn.Module) -> nn.Module:
    """Returns the model with LoRA on all its linear layers, off the initial values: B starts at 0."""
    turned = any(isinstance(module, Conv1D) for module in model.modules())  # PEFT warns where it finds out by itself
    left_out = list(NO_ADAPTER.get(model.config.model_type, ())) or None  # type: ignore[union-attr]
    config = LoraConfig(r=2, target_modules="all-linear", fan_in_fan_out=turned, exclude_modules=left_out)
    adapted: nn.Module = get_peft_model(model, config)  # type: ignore[arg-type]
    return moved(adapted, 2).eval()


def _autograd(model: nn.Module, collate: Collator, together: bool = False) -> dict[str, torch.Tensor]:
    """Returns the gradients of each row's loss, alone or in the batch of all of them."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found: dict[str, list[torch.Tensor]] = {name: [] for name in parameters}
    for place, row in enumerate(rows()):
        batch = collate([*rows()] if together else [row])
        if together:  # no other row has a label
            batch["labels"][torch.arange(len(batch["labels"])) != place] = -100
        loss = model(**batch).loss
        each = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for (name, parameter), gradient in zip(parameters.items(), each, strict=True):
            found[name].append((torch.zeros_like(parameter) if gradient is None else gradient).flatten())
    return {name: torch.stack(each) for name, each in found.items()}


def weighter(model: nn.Module, collate: Collator, logits: str) -> float:
    """The losses of two steps under a uniform weighter, against those of the plain Trainer."""
    found, expected = weighted_run(copy.deepcopy(model), collate, logits), plain_run(copy.deepcopy(model), collate)
    return _apart(torch.tensor(found), torch.tensor(expected), LOSS * max(map(abs, expected)), "losses of steps")


@contextmanager
def _given_to_output(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    given: list[torch.Tensor] = []
    layer = model.get_output_embeddings()  # type: ignore[operator]
    if layer is None:
        yield given
        return
    handle = layer.register_forward_pre_hook(lambda module, args: given.append(args[0].detach()))
    try:
        yield given
    finally:
        handle.remove()


def _apart(found: torch.Tensor, expected: torch.Tensor, allowed: torch.Tensor | float, what: str) -> float:
    if found.shape != expected.shape:
        raise WrongError(f"{what}: shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    if not expected.isfinite().all():
        raise WrongError(f"{what}: the plain model's are not finite")
    apart = float((found.double() - expected.double()).abs().max())
    if not apart <= float(allowed):
        raise WrongError(f"{what}: {apart:.1e} apart, {float(allowed):.1e} allowed")
    return apart / float(allowed) if apart else 0.0


CELLS: dict[str, Callable[[nn.Module, Collator], Any]] = {
    "losses": lambda model, collate: losses(model, collate, chunked=False),
    "chunked": lambda model, collate: losses(model, collate, chunked=True),
    "weighter": lambda model, collate: weighter(model, collate, "full"),
    "weighter_chunked": lambda model, collate: weighter(model, collate, "chunked"),
    "hidden": hidden,
    "states": states_are_last,
    "lora": lora,
    "full": full,
}
